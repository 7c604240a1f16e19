package couriersql

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRowThatCannotBeDecoded(t *testing.T) {
	for name, row := range map[string]Row{
		"headers": {ID: "a1", Headers: `{"n":`},
		"trace":   {ID: "a1", Trace: `{"n":1}`},
	} {
		_, err := row.Message()
		require.ErrorContains(t, err, `couriersql: message "a1": the column `+name+` is not a JSON object of strings, such as {"name":"value"}: `)
	}
	_, err := Row{Headers: `[]`}.Message()
	var kind *json.UnmarshalTypeError
	require.ErrorAs(t, err, &kind)
}

func TestRowInALog(t *testing.T) {
	row := Row{Seq: 1, ID: "a", Topic: "orders", Key: "k", Payload: []byte("secret"), Headers: "secret"}
	for _, text := range []string{fmt.Sprint(row), fmt.Sprintf("%v %+v", &row, []Row{row})} {
		require.Contains(t, text, `message "a" (topic "orders", key "k")`)
		require.NotContains(t, text, "secret")
	}
}

func FuzzRowMessage(f *testing.F) {
	f.Add(`{"a":"b"}`)
	f.Add(`{"a":1}`)
	f.Add("")
	f.Fuzz(func(t *testing.T, headers string) {
		m, err := Row{ID: "a", Headers: headers}.Message()
		if err != nil {
			return
		}
		again, err := Row{ID: "a", Headers: encode(m.Headers)}.Message()
		require.NoError(t, err)
		require.Equal(t, len(m.Headers), len(again.Headers))
		for name, value := range m.Headers {
			require.Equal(t, value, again.Headers[name])
		}
	})
}
