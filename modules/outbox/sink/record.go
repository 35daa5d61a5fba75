package sink

import (
	"strconv"

	"github.com/IBM/sarama"

	"github.com/toppira/authctl/modules/outbox/relay"
)

// Headers that every record shares. They never change.
var (
	specVersionHeader = header("ce_specversion", "1.0")
	replayHeader      = header("ce_replay", "true")
	contentTypeHeader = header("content-type", contentType)

	idName         = []byte("ce_id")
	sourceName     = []byte("ce_source")
	typeName       = []byte("ce_type")
	timeName       = []byte("ce_time")
	subjectName    = []byte("ce_subject")
	sequenceName   = []byte("ce_sequence")
	dataSchemaName = []byte("ce_dataschema")
	generationName = []byte("ce_generation")
	ceTraceName    = []byte("ce_traceparent") // CloudEvents extension for distributed tracing
	traceName      = []byte("traceparent")    // what instrumented Kafka clients read
)

func header(name, value string) *sarama.RecordHeader {
	return &sarama.RecordHeader{Key: []byte(name), Value: []byte(value)}
}

// recordWriter makes the records of one batch. Thirty small allocations for each record would cost
// more than everything else, so it makes one for the texts of the batch and one for its records, and
// a value that consecutive records share is stored once.
type recordWriter struct {
	text    []byte
	records []written
	traces  []sarama.RecordHeader // two for each record of a trace; it never grows

	source, kind, schema, generation *sarama.RecordHeader
}

// written is a record with the memory for its headers.
type written struct {
	record sarama.Record
	own    [4]sarama.RecordHeader // id, time, subject, sequence
	list   [13]*sarama.RecordHeader
}

func newWriter(records []relay.Record) *recordWriter {
	size, traced := 0, 0
	for i := range records {
		r := &records[i]
		size += len(r.Key) + len(r.EventID) + len(r.Time) + len(r.Subject) + len("9223372036854775807") +
			len(r.TraceParent)
		if r.TraceParent != "" {
			traced++
		}
	}
	return &recordWriter{
		text: make([]byte, 0, size), records: make([]written, len(records)),
		traces: make([]sarama.RecordHeader, 0, 2*traced),
		source: &sarama.RecordHeader{Key: sourceName}, kind: &sarama.RecordHeader{Key: typeName},
		schema: &sarama.RecordHeader{Key: dataSchemaName}, generation: &sarama.RecordHeader{Key: generationName},
	}
}

// record makes the i-th record of the batch. Its headers are the attributes in binary mode, in this
// order.
func (w *recordWriter) record(i int, r *relay.Record) *sarama.Record {
	to := &w.records[i]
	list := append(to.list[:0], specVersionHeader)
	own := to.own[:0]
	add := func(name, value []byte) {
		own = append(own, sarama.RecordHeader{Key: name, Value: value})
		list = append(list, &own[len(own)-1])
	}
	add(idName, w.piece(r.EventID))
	list = append(list, shared(&w.source, r.Source), shared(&w.kind, r.Type))
	add(timeName, w.piece(r.Time))
	if r.Subject != "" {
		add(subjectName, w.piece(r.Subject))
	}
	begin := len(w.text)
	w.text = strconv.AppendInt(w.text, r.Seq, 10)
	add(sequenceName, w.text[begin:len(w.text):len(w.text)])
	if text := generation(&r.Record); text != "" {
		list = append(list, shared(&w.generation, text))
	}
	if r.DataSchema != "" {
		list = append(list, shared(&w.schema, r.DataSchema))
	}
	if r.Replay {
		list = append(list, replayHeader)
	}
	if r.TraceParent != "" {
		trace := w.piece(r.TraceParent)
		w.traces = append(w.traces, sarama.RecordHeader{Key: ceTraceName, Value: trace},
			sarama.RecordHeader{Key: traceName, Value: trace})
		list = append(list, &w.traces[len(w.traces)-2], &w.traces[len(w.traces)-1])
	}
	list = append(list, contentTypeHeader)
	to.record = sarama.Record{OffsetDelta: int64(i), Key: w.piece(r.Key), Value: r.Data, Headers: list}
	return &to.record
}

func (w *recordWriter) piece(s string) []byte {
	begin := len(w.text)
	w.text = append(w.text, s...)
	return w.text[begin:len(w.text):len(w.text)]
}

// shared returns the header of the previous record if it has the same value.
func shared(last **sarama.RecordHeader, value string) *sarama.RecordHeader {
	if string((*last).Value) != value {
		*last = &sarama.RecordHeader{Key: (*last).Key, Value: []byte(value)}
	}
	return *last
}
