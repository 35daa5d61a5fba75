package tuning

import (
	"slices"
	"strings"
	"testing"
)

// What the program or a linker has written to must stay.
func TestOnlyWhatIsAsInTheFileIsForgotten(t *testing.T) {
	const smaps = `00400000-01b66000 r-xp 00000000 fe:00 9994774                            /bin/authctl
Size:              23960 kB
Rss:               15000 kB
Anonymous:             0 kB
Swap:                  0 kB
SwapPss:               0 kB
VmFlags: rd ex mr mw me
01b66000-03e80000 r--p 01766000 fe:00 9994774                            /bin/authctl
Rss:               22000 kB
Anonymous:             0 kB
Swap:                  0 kB
SwapPss:               0 kB
03e80000-04085000 rw-p 03a80000 fe:00 9994774                            /bin/authctl
Anonymous:             0 kB
Swap:                  0 kB
SwapPss:               0 kB
04085000-04095000 r--p 03c80000 fe:00 9994774                            /bin/authctl
Anonymous:             4 kB
Swap:                  0 kB
04095000-040a5000 r--p 03c90000 fe:00 9994774                            /bin/authctl
Anonymous:             0 kB
Swap:                  4 kB
c000000000-c000800000 rw-p 00000000 00:00 0                              [anon: Go: heap]
Anonymous:          4096 kB
7f0000000000-7f0000028000 r--p 00000000 fe:00 9971                       /usr/lib/libc.so.6
Anonymous:             0 kB
Swap:                  0 kB
SwapPss:               0 kB
7f0000030000-7f0000058000 r--p 00000000 fe:00 9972                       /usr/bin/authctl
Anonymous:             0 kB
Swap:                  0 kB
SwapPss:               0 kB
`
	want := []mapping{{0x400000, 0x1b66000}, {0x1b66000, 0x3e80000}}
	if got := unchanged(strings.NewReader(smaps), "/bin/authctl"); !slices.Equal(got, want) {
		t.Errorf("%x", got)
	}
	before := table[7]
	ForgetStart()
	if table[7] != before || table[1] != "one" {
		t.Error("the program has forgotten more than it can read again")
	}
}

var table = map[int]string{1: "one", 7: strings.Repeat("seven", 7)}
