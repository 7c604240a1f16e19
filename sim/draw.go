package sim

// Every choice is drawn from a hash of the seed and of what the choice is about,
// and none from a stream: so it does not matter who asks first, and taking one
// fault away leaves the other choices as they were.

// mix spreads the bits of x (the finalizer of splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

func hash(seed, a, b, c uint64) uint64 {
	return mix(mix(mix(mix(seed)^a)^b) ^ c)
}

// uniform makes of a hash a number in [0, 1).
func uniform(h uint64) float64 { return float64(h>>11) / (1 << 53) }

// digest is a hash of a text, FNV-1a.
func digest(text string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(text) {
		h = (h ^ uint64(text[i])) * 1099511628211
	}
	return h
}

// The purposes of draws, which keep them apart.
const (
	forFault = iota + 1
	forDelay
	forReply
	forRandom
	forHeed
	forSwarm
	forThrow
	forDress
	forLater
)

// Draw returns a number in [0, 1) that belongs to the seed and the purpose: for
// choosing a configuration for the episode. The same purpose draws the same.
func (w *World) Draw(purpose string) float64 {
	return uniform(hash(w.seed, forSwarm, digest(purpose), 0))
}

// Pick returns a number from 0 to n-1, drawn as by Draw.
func (w *World) Pick(purpose string, n int) int { return int(w.Draw(purpose) * float64(n)) }
