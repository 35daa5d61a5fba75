package verify

import (
	"runtime"
	"testing"
	"time"
)

// Not parallel, because it measures the heap of the whole process.
func TestAHundredThousandEndsFitInto16MiB(t *testing.T) {
	before := heap()
	d := &denylist{}
	fill(d, 100_000)
	if used := int64(heap()) - int64(before); used > 16<<20 || used < 1<<20 {
		t.Errorf("%d bytes", used)
	}
	if n := d.len(); n != 100_000 {
		t.Errorf("%d ends", n)
	}
	// Forgotten ends make room for new ones.
	for range 20 {
		d.forget(time.Now().Add(6*time.Hour), denyShards)
		if n := d.len(); n != 0 {
			t.Fatalf("%d ends remain", n)
		}
		fill(d, 100_000)
	}
	if used := int64(heap()) - int64(before); used > 16<<20 {
		t.Errorf("after 20 rounds, %d bytes", used)
	}
	runtime.KeepAlive(d)
}
