// Command generate makes the built-in list of common passwords out of a JSON array of
// strings, such as src/passwords.json of the npm package @zxcvbn-ts/language-common.
//
//	npm pack @zxcvbn-ts/language-common && tar xzf zxcvbn-ts-language-common-*.tgz
//	go run ./blocklist/generate -out blocklist/common.txt.gz package/src/passwords.json
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/text/unicode/norm"
)

func main() {
	out := flag.String("out", "common.txt.gz", "file to write")
	flag.Parse()
	if err := run(flag.Arg(0), *out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(in, out string) error {
	text, err := os.ReadFile(in)
	if err != nil {
		return err
	}
	var passwords []string
	if err := json.Unmarshal(text, &passwords); err != nil {
		return fmt.Errorf("read %s: %w", in, err)
	}
	for i, p := range passwords {
		passwords[i] = strings.ToLower(norm.NFC.String(p)) // as they are compared
	}
	slices.Sort(passwords)
	passwords = slices.DeleteFunc(slices.Compact(passwords), func(p string) bool {
		return p == "" || strings.ContainsAny(p, "\r\n")
	})
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte(strings.Join(passwords, "\n") + "\n")); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(out, packed.Bytes(), 0o644)
}
