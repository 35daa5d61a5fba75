package logging

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
)

const (
	maxValue  = 8 << 10  // bytes kept of one text
	maxRecord = 64 << 10 // bytes of a line; a longer one keeps only plain fields, shortened
	maxShort  = 256      // bytes kept of one text in such a line
	maxFields = 64       // fields kept in such a line
)

// core encodes a record for each output, as one line that is safe to read.
type core struct {
	zap.AtomicLevel
	outputs []output
	context []zap.Field // of With, for a line that is too long
}

type output struct {
	enc   zapcore.Encoder // holds the fields of With, encoded
	bare  zapcore.Encoder // the same without them
	plain bool            // the encoders do not escape the message
	sink  *sink
	least zapcore.Level
}

func newOutput(enc zapcore.Encoder, to *sink) output {
	return output{enc: enc, bare: enc, sink: to, least: zapcore.DebugLevel}
}

// With encodes the fields at once, as zap promises, because what they point to may change later.
func (c *core) With(fields []zap.Field) zapcore.Core {
	fields = cutFields(fields, maxValue)
	child := &core{
		AtomicLevel: c.AtomicLevel,
		outputs:     slices.Clone(c.outputs),
		context:     slices.Concat(c.context, shorten(fields)),
	}
	for i := range child.outputs {
		child.outputs[i].add(fields)
	}
	return child
}

// add keeps all of the fields or, if one of them panics, the plain ones.
func (out *output) add(fields []zap.Field) {
	enc := out.enc
	addTo := func(fields []zap.Field) (err error) {
		defer recovered(&err)
		out.enc = enc.Clone()
		for _, f := range fields {
			f.AddTo(out.enc)
		}
		return nil
	}
	if err := addTo(fields); err != nil {
		_ = addTo(append(shorten(fields), zap.String("log_error", err.Error())))
	}
}

func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *core) Sync() error { return nil } // nothing is buffered

// Write never fails: see [sink].
func (c *core) Write(e zapcore.Entry, fields []zap.Field) error {
	fields = cutFields(fields, maxValue)
	e.Message, e.LoggerName = cut(e.Message, maxValue), cut(e.LoggerName, maxShort)
	if e.Stack != "" { // the console encoder would put it on separate lines
		fields = append(slices.Clip(fields), zap.String("stack", cut(e.Stack, maxValue)))
		e.Stack = ""
	}
	for _, out := range c.outputs {
		if e.Level >= out.least {
			out.write(e, c.context, fields)
		}
	}
	return nil
}

func (out output) write(e zapcore.Entry, context, fields []zap.Field) {
	if out.plain {
		e.Message, e.LoggerName = escape(e.Message), escape(e.LoggerName)
	}
	line, err := encode(out.enc, e, fields)
	var short []zap.Field
	switch {
	case err != nil: // log the message at least
		short = []zap.Field{zap.String("log_error", err.Error())}
	case line.Len() > maxRecord:
		short = []zap.Field{zap.Int("record_bytes", line.Len())}
		line.Free()
	}
	if short != nil {
		kept := append(slices.Clone(context), shorten(fields)...)
		if line, err = encode(out.bare, e, append(short, kept[:min(len(kept), maxFields)]...)); err != nil {
			return // plain values always encode
		}
	}
	out.sink.write(safe(line.Bytes()))
	line.Free()
}

func encode(enc zapcore.Encoder, e zapcore.Entry, fields []zap.Field) (line *buffer.Buffer, err error) {
	defer recovered(&err)
	return enc.EncodeEntry(e, fields)
}

// recovered turns a panic of a field's own methods into an error, so that a record cannot fail a
// request.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("a field panics: %s", cut(fmt.Sprint(p), maxShort))
	}
}

func jsonEncoder() zapcore.Encoder {
	return zapcore.NewJSONEncoder(zapcore.EncoderConfig{
		TimeKey: "ts", LevelKey: "level", NameKey: "logger", MessageKey: "msg", CallerKey: "caller",
		EncodeTime: func(t time.Time, enc zapcore.PrimitiveArrayEncoder) {
			enc.AppendString(t.UTC().Format("2006-01-02T15:04:05.000Z07:00"))
		},
		EncodeLevel:         zapcore.LowercaseLevelEncoder,
		EncodeDuration:      zapcore.SecondsDurationEncoder,
		EncodeCaller:        zapcore.ShortCallerEncoder,
		NewReflectedEncoder: newReflected,
	})
}

func consoleEncoder(colour bool) zapcore.Encoder {
	cfg := zapcore.EncoderConfig{
		TimeKey: "ts", LevelKey: "level", NameKey: "logger", MessageKey: "msg", CallerKey: "caller",
		EncodeTime:          zapcore.TimeEncoderOfLayout("15:04:05.000"),
		EncodeLevel:         zapcore.CapitalLevelEncoder,
		EncodeDuration:      zapcore.StringDurationEncoder,
		EncodeCaller:        zapcore.ShortCallerEncoder,
		ConsoleSeparator:    "  ",
		NewReflectedEncoder: newReflected,
	}
	if colour {
		cfg.EncodeLevel = colouredLevel
	}
	return zapcore.NewConsoleEncoder(cfg)
}

// colouredLevel uses colours that can be read on light and dark terminals, for what somebody should notice.
func colouredLevel(l zapcore.Level, enc zapcore.PrimitiveArrayEncoder) {
	text := l.CapitalString()
	switch {
	case l >= zapcore.ErrorLevel:
		text = "\x1b[1;31m" + text + "\x1b[0m" // bold red
	case l == zapcore.WarnLevel:
		text = "\x1b[1;35m" + text + "\x1b[0m" // bold magenta
	}
	enc.AppendString(text)
}

// cutFields limits the length of texts, without changing the caller's slice. Errors and Stringers
// become plain text at once, because zap would add the verbose form of an error, with its stack,
// under a second key.
func cutFields(fields []zap.Field, most int) []zap.Field {
	out := fields
	for i, f := range fields {
		key := cut(f.Key, maxShort)
		switch f.Type {
		case zapcore.StringType:
			if len(f.String) <= most && len(key) == len(f.Key) {
				continue
			}
			f.String = cut(f.String, most)
		case zapcore.ErrorType:
			f = zap.String(key, cut(call(f.Interface, f.Interface.(error).Error), most))
		case zapcore.StringerType:
			f = zap.String(key, cut(call(f.Interface, f.Interface.(fmt.Stringer).String), most))
		case zapcore.ByteStringType:
			if b := f.Interface.([]byte); len(b) > most {
				f = zap.String(key, cut(string(b), most))
			}
		case zapcore.BinaryType:
			if b := f.Interface.([]byte); len(b) > most {
				f = zap.String(key, fmt.Sprintf("[%d bytes]", len(b)))
			}
		default:
			if len(key) == len(f.Key) {
				continue
			}
		}
		f.Key = key
		if &out[0] == &fields[0] {
			out = slices.Clone(fields)
		}
		out[i] = f
	}
	return out
}

// call returns the text of v, an error or a Stringer, which may hold a nil pointer.
func call(v any, text func() string) (s string) {
	defer func() {
		if p := recover(); p != nil {
			s = fmt.Sprintf("[%T panics: %s]", v, cut(fmt.Sprint(p), maxShort))
			if ptr := reflect.ValueOf(v); ptr.Kind() == reflect.Pointer && ptr.IsNil() {
				s = "<nil>"
			}
		}
	}()
	return text()
}

// shorten keeps of each field what fits a line that is too long: a plain value, cut short, or a
// mark that something was left out.
func shorten(fields []zap.Field) []zap.Field {
	kept := slices.Clone(cutFields(fields[:min(len(fields), maxFields)], maxShort))
	for i, f := range kept {
		switch f.Type {
		case zapcore.ArrayMarshalerType, zapcore.ObjectMarshalerType, zapcore.InlineMarshalerType,
			zapcore.ReflectType, zapcore.BinaryType, zapcore.UnknownType:
			kept[i] = zap.String(f.Key, "[left out]")
		}
	}
	return kept
}

// cut limits the length of a text, between two characters.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	end := most
	for end > most-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…[" + strconv.Itoa(len(s)) + " bytes]"
}

// hidden reports characters that must be escaped: they end a line, control a terminal, or change
// the direction of text.
func hidden(r rune) bool {
	if r < utf8.RuneSelf {
		return r < ' ' || r == '\x7f'
	}
	return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r)
}

// escape writes hidden characters as \n, \u001b and the like. It does not escape backslashes, since
// the result is for people.
func escape(s string) string {
	if utf8.ValidString(s) && !bytes.ContainsFunc([]byte(s), hidden) {
		return s
	}
	var b []byte
	for _, r := range s { // a byte that is not UTF-8 comes as U+FFFD
		switch {
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\r':
			b = append(b, `\r`...)
		case hidden(r):
			b = fmt.Appendf(b, `\u%04x`, r)
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return string(b)
}

// safe escapes what zap and encoding/json do not: in their output it can only be inside strings,
// where the escape means the same. It leaves ESC, which by now is only in the console's colours,
// and the newline at the end.
func safe(line []byte) []byte {
	body := bytes.TrimSuffix(line, []byte{'\n'})
	if !bytes.ContainsFunc(body, func(r rune) bool { return r != '\x1b' && hidden(r) }) {
		return line
	}
	out := make([]byte, 0, len(line)+32)
	for len(body) > 0 {
		r, size := utf8.DecodeRune(body)
		if r != '\x1b' && hidden(r) {
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = append(out, body[:size]...)
		}
		body = body[size:]
	}
	return append(out, '\n')
}

// reflected encodes values of types that zap does not know, with a limit on their length.
type reflected struct{ w io.Writer }

func newReflected(w io.Writer) zapcore.ReflectedEncoder { return reflected{w} }

func (r reflected) Encode(v any) (err error) {
	defer recovered(&err)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	if b.Len() > maxValue {
		text := cut(b.String(), maxValue)
		b.Reset()
		if err := enc.Encode(text); err != nil {
			return err
		}
	}
	_, err = r.w.Write(b.Bytes())
	return err
}
