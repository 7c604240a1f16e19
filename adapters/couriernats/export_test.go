package couriernats

import "time"

// WithPatience sets how long a connection may be mute before it is thrown away.
func WithPatience(d time.Duration) Option { return func(c *config) { c.patience = d } }
