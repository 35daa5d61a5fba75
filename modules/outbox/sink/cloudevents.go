// Package sink has the targets of events: [Kafka] and a [File]. Both write CloudEvents 1.0 with the
// attributes id, source, type, time, subject, dataschema and the extension sequence, the number of
// the event among those of its key, counted from 1 without gaps, in decimal. An event that an
// operator had sent again has the extension replay. An event of a trace has the extension traceparent, and
// one of a generation above 0 the extension generation, in decimal.
package sink

import (
	"bytes"
	"encoding/json"
	"strconv"

	"github.com/toppira/authctl/modules/outbox"
)

// structured is the structured JSON form, which is one line of the file. The sequence is a string, as
// the extension of CloudEvents requires.
type structured struct {
	SpecVersion     string          `json:"specversion"`
	ID              string          `json:"id"`
	Source          string          `json:"source"`
	Type            string          `json:"type"`
	Subject         string          `json:"subject,omitempty"`
	Time            string          `json:"time"`
	Sequence        string          `json:"sequence"`
	Generation      string          `json:"generation,omitempty"`
	Replay          bool            `json:"replay,omitempty"`
	DataSchema      string          `json:"dataschema,omitempty"`
	TraceParent     string          `json:"traceparent,omitempty"`
	DataContentType string          `json:"datacontenttype"`
	Data            json.RawMessage `json:"data"`
}

// Line is the structured JSON form of an event, with a newline at the end.
func Line(r *outbox.Record) ([]byte, error) {
	var line bytes.Buffer
	err := writeLine(&line, r)
	return line.Bytes(), err
}

// writeLine appends it.
func writeLine(to *bytes.Buffer, r *outbox.Record) error {
	enc := json.NewEncoder(to)
	enc.SetEscapeHTML(false) // leave the data unchanged
	return enc.Encode(structured{
		SpecVersion: "1.0", ID: r.EventID, Source: r.Source, Type: r.Type, Subject: r.Subject, Time: r.Time,
		Sequence: strconv.FormatInt(r.Seq, 10), Generation: generation(r), Replay: r.Replay, DataSchema: r.DataSchema,
		TraceParent: r.TraceParent, DataContentType: contentType, Data: r.Data,
	})
}

// generation is that of the event as text, and empty for the first: consumers see no change until a
// database was set back.
func generation(r *outbox.Record) string {
	if r.Generation == 0 {
		return ""
	}
	return strconv.FormatInt(r.Generation, 10)
}

const contentType = "application/json"
