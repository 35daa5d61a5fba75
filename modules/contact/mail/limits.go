package mail

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"
)

const (
	// maxPart is the largest part of a mail in bytes. It is above what a template and its data can need.
	maxPart = 4 * maxTemplate

	// maxSteps is how many texts, turns of loops and calls of templates a part may have. Templates have
	// nothing to loop over, and need some dozens.
	maxSteps = 10_000
)

var (
	errPartTooLong  = fmt.Errorf("what it makes is longer than %d bytes", maxPart)
	errTooManySteps = fmt.Errorf("it does not end within %d steps: a loop is too long, or a template calls itself",
		maxSteps)
)

// part is a part of a mail that is being made. Nothing else can stop a template: one with
// {{range 1000000000}} would fill the memory, or run for hours.
type part struct {
	text  strings.Builder
	steps int
}

func (p *part) Write(b []byte) (int, error) {
	if p.steps++; p.steps > maxSteps {
		return 0, errTooManySteps
	}
	if p.text.Len()+len(b) > maxPart {
		return 0, errPartTooLong
	}
	return p.text.Write(b)
}

func (p *part) String() string { return p.text.String() }

// makeFault is the fault of a template that was executed. It names the place if Go does not.
func (t *Templates) makeFault(place string, err error) error {
	if err == errPartTooLong || err == errTooManySteps { //nolint:errorlint // of Write; Go wraps those of functions
		return fmt.Errorf("%s%s: %w", place, t.loops[place], err)
	}
	return templateFault(err)
}

// loop is what can keep a template from ending: a loop, or a call, which may be of itself.
var loop = regexp.MustCompile(`\{\{-?\s*(range|template|block)\b`)

// loopLines are the lines of a template with a [loop], as they follow the file in a fault.
func loopLines(text string) (lines string) {
	separator := ":"
	for i, line := range strings.Split(text, "\n") {
		if loop.MatchString(line) {
			lines += separator + strconv.Itoa(i+1)
			separator = ","
		}
	}
	return lines
}

// prepare reports a field that [Data] does not have, also in a branch that no sample takes; nothing else in a template
// has fields. And it puts an empty text at the begin of the template and of each of its loops. That shows nothing, but
// it is written, so [part] counts every turn and every call, also of those that write nothing.
func prepare(tree *parse.Tree) error {
	if tree == nil || tree.Root == nil {
		return nil
	}
	var unknown error
	look := func(node parse.Node, names []string) {
		for i, name := range names {
			if _, found := dataType.FieldByName(name); (!found || i > 0) && unknown == nil {
				at, _ := tree.ErrorContext(node)
				unknown = fmt.Errorf("%s: there is no field .%s", at, strings.Join(names, "."))
			}
		}
	}
	count := func(list *parse.ListNode) {
		list.Nodes = append([]parse.Node{&parse.TextNode{NodeType: parse.NodeText}}, list.Nodes...)
	}
	var walk func(parse.Node)
	branches := func(n parse.BranchNode) {
		walk(n.Pipe)
		walk(n.List)
		walk(n.ElseList)
	}
	walk = func(node parse.Node) {
		switch n := node.(type) {
		case *parse.ListNode:
			if n != nil {
				for _, one := range n.Nodes {
					walk(one)
				}
			}
		case *parse.ActionNode:
			walk(n.Pipe)
		case *parse.TemplateNode:
			walk(n.Pipe)
		case *parse.IfNode:
			branches(n.BranchNode)
		case *parse.WithNode:
			branches(n.BranchNode)
		case *parse.RangeNode:
			branches(n.BranchNode)
			count(n.List)
		case *parse.PipeNode:
			if n != nil {
				for _, one := range n.Cmds {
					walk(one)
				}
			}
		case *parse.CommandNode:
			for _, one := range n.Args {
				walk(one)
			}
		case *parse.ChainNode:
			walk(n.Node)
			look(n, n.Field)
		case *parse.FieldNode:
			look(n, n.Ident)
		case *parse.VariableNode:
			look(n, n.Ident[1:])
		}
	}
	walk(tree.Root)
	count(tree.Root)
	return unknown
}

var dataType = reflect.TypeFor[Data]()

// textFunctions are Go's functions that make texts. Of a variable that doubles with each line, a template of 64 KiB
// would fill any memory.
var textFunctions = template.FuncMap{
	"print":    limited(fmt.Sprint),
	"println":  limited(fmt.Sprintln),
	"html":     limited(template.HTMLEscaper),
	"js":       limited(template.JSEscaper),
	"urlquery": limited(template.URLQueryEscaper),
	"printf": func(format string, args ...any) (string, error) {
		if wide.MatchString(strings.ReplaceAll(format, "%%", "")) {
			return "", errors.New("a width has at most three digits")
		}
		return limited(func(args ...any) string { return fmt.Sprintf(format, args...) })(args...)
	},
}

// wide matches a width or precision that can be large: fmt makes up to a million blanks for each.
var wide = regexp.MustCompile(`%[^a-zA-Z%]*(\*|[0-9]{4})`)

func limited(fn func(...any) string) func(...any) (string, error) {
	return func(args ...any) (string, error) {
		text := fn(args...)
		if len(text) > maxPart {
			return "", errPartTooLong
		}
		return text, nil
	}
}
