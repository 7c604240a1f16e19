package courier_test

import (
	"testing"

	"github.com/benbjohnson/clock"
	"go.uber.org/goleak"

	"github.com/erfanmomeniii/courier"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Both of benbjohnson's clocks are a Clock without an adapter.
var (
	_ courier.Clock = clock.New()
	_ courier.Clock = clock.NewMock()
)
