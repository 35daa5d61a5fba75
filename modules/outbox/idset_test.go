package outbox

import "testing"

func TestAnIDSetForgets(t *testing.T) {
	t.Parallel()
	var s idSet
	for id := int64(1); id <= 10_000; id += 3 {
		s.add(id)
	}
	for id := int64(1); id <= 10_000; id++ {
		if s.has(id) != (id%3 == 1) {
			t.Fatalf("%d: %v", id, s.has(id))
		}
	}
	if len(s.bits) > 10_000/64+1 {
		t.Errorf("%d words", len(s.bits))
	}
	s.forget(5000)
	if s.has(4900) || !s.has(5002) || s.has(5001) {
		t.Error("it forgets otherwise")
	}
	s.forgetAbove(7003)
	if !s.has(7003) || s.has(7006) || s.has(9001) {
		t.Error("it forgets others above one")
	}
	s.forget(20_000)
	if len(s.bits) != 0 {
		t.Errorf("%d words remain", len(s.bits))
	}
}
