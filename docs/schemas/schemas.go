// Package schemas holds the JSON Schemas of the data of events, for the routes that serve them and the
// tests that hold events against them. A file has no $id: the schema is called what it was fetched by,
// which is the ce_dataschema of the events, whoever the issuer is.
package schemas

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"strings"
)

//go:embed *.json
var files embed.FS

// Schema is the schema of one type of event.
type Schema struct {
	Type string
	Text []byte // do not change it
	ETag string
}

var all = read()

func read() (list []Schema) {
	entries, err := files.ReadDir(".")
	if err != nil {
		panic(err) // it is in the binary
	}
	for _, entry := range entries {
		text, err := files.ReadFile(entry.Name())
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(text)
		list = append(list, Schema{
			Type: strings.TrimSuffix(entry.Name(), ".json"), Text: text, ETag: `"` + hex.EncodeToString(sum[:16]) + `"`,
		})
	}
	return list
}

// All returns every schema, by type.
func All() []Schema { return all }
