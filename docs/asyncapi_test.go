package docs_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/toppira/authctl/docs/schemas"
	"github.com/toppira/authctl/modules/auth"
	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/platform/testenv"
)

const asyncapiHead = `# Made from docs/schemas by: go test ./docs -run AsyncAPI -update
asyncapi: 3.0.0
info:
  title: authctl events
  version: "1"
  description: |
    An event for every change of an account, as CloudEvents 1.0. docs/events.md is the contract: what is
    guaranteed, and what may change within a version of a type.
  license:
    name: Apache-2.0
    url: https://www.apache.org/licenses/LICENSE-2.0
  externalDocs:
    url: https://github.com/toppira/authctl/blob/main/docs/events.md
defaultContentType: application/json
channels:
  events:
    address: auth.events
    title: The topic of the setting kafka.topic
    description: |
      Kafka protocol binding of CloudEvents in binary mode: attributes are headers, the value is the data,
      the key is the id of the user. Events of a user are in order, and each is delivered at least once.
    bindings:
      kafka:
        topic: auth.events
    messages: {}
operations:
  sendEvents:
    action: send
    title: authctl publishes an event
    channel:
      $ref: "#/channels/events"
components:
  messages: {}
  messageTraits:
    cloudEvent:
      contentType: application/json
      bindings:
        kafka:
          key:
            type: string
            description: The id of the user.
      headers:
        type: object
        required: [ce_specversion, ce_id, ce_source, ce_type, ce_time, ce_subject, ce_sequence, ce_dataschema, content-type]
        properties:
          ce_specversion: {type: string, const: "1.0"}
          ce_id: {type: string, format: uuid, description: "The same in every delivery."}
          ce_source: {type: string, format: uri, description: "The issuer, auth.token.issuer."}
          ce_type: {type: string, description: "The name of the message."}
          ce_time: {type: string, format: date-time, description: When it happened.}
          ce_subject: {type: string, format: uuid, description: The id of the user.}
          ce_sequence:
            type: string
            pattern: "^[1-9][0-9]*$"
            description: The place among the events of the user, from 1.
          ce_generation:
            type: string
            pattern: "^[1-9][0-9]*$"
            description: How often the database had been set back to a backup; absent at 0. Numbers repeat in a higher one.
          ce_dataschema: {type: string, format: uri, description: The URL of the JSON Schema of the data.}
          ce_replay:
            type: string
            const: "true"
            description: On events that an operator sent again.
          ce_traceparent:
            type: string
            pattern: "^00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]$"
            description: The trace of the request that the event comes from (W3C Trace Context).
          traceparent: {type: string, description: The same as ce_traceparent.}
          content-type: {type: string, const: application/json}
`

// asyncapi makes the document from the schemas and from the examples in events.md.
func asyncapi(t *testing.T) []byte {
	t.Helper()
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(asyncapiHead), &document); err != nil {
		t.Fatal(err)
	}
	examples := map[string]*yaml.Node{}
	for _, b := range read(t, "events.md").fence {
		if b.language == "json" {
			examples[strings.Trim(b.heading, "`")] = fromJSON(t, b.text)
		}
	}
	here := at(t, document.Content[0], "channels", "events", "messages")
	all := at(t, document.Content[0], "components", "messages")
	for _, schema := range schemas.All() {
		payload := fromJSON(t, string(schema.Text))
		drop(payload, "$schema") // AsyncAPI has its own dialect, which covers all that we use
		summary := drop(payload, "description")
		add(t, here, schema.Type, map[string]string{"$ref": "#/components/messages/" + schema.Type})
		message := add(t, all, schema.Type, struct {
			Name    string              `yaml:"name"`
			Summary *yaml.Node          `yaml:"summary"`
			Traits  []map[string]string `yaml:"traits"`
			Payload *yaml.Node          `yaml:"payload"`
		}{schema.Type, summary, []map[string]string{{"$ref": "#/components/messageTraits/cloudEvent"}}, payload})
		if example := examples[schema.Type]; example != nil {
			add(t, message, "examples", []map[string]*yaml.Node{{"payload": example}})
		}
	}
	all.Style, here.Style = 0, 0
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(&document); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// fromJSON turns JSON into YAML nodes.
func fromJSON(t *testing.T, text string) *yaml.Node {
	t.Helper()
	var node yaml.Node
	if err := yaml.Unmarshal([]byte(text), &node); err != nil {
		t.Fatal(err)
	}
	var plain func(*yaml.Node)
	plain = func(n *yaml.Node) {
		n.Style = 0
		for _, part := range n.Content {
			plain(part)
		}
	}
	plain(&node)
	return node.Content[0]
}

// at returns a member of a mapping, or of a nested one.
func at(t *testing.T, node *yaml.Node, path ...string) *yaml.Node {
	t.Helper()
	for _, name := range path {
		i := index(node, name)
		if i < 0 {
			t.Fatalf("there is no %s", strings.Join(path, "."))
		}
		node = node.Content[i+1]
	}
	return node
}

// index is the position of a key in a mapping, or -1.
func index(mapping *yaml.Node, key string) int {
	for i := 0; i < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return i
		}
	}
	return -1
}

// drop takes a member out of a mapping.
func drop(mapping *yaml.Node, key string) *yaml.Node {
	i := index(mapping, key)
	if i < 0 {
		return nil
	}
	value := mapping.Content[i+1]
	mapping.Content = append(mapping.Content[:i], mapping.Content[i+2:]...)
	return value
}

// add puts a member into a mapping.
func add(t *testing.T, mapping *yaml.Node, key string, value any) *yaml.Node {
	t.Helper()
	var node yaml.Node
	if err := node.Encode(value); err != nil {
		t.Fatal(err)
	}
	mapping.Content = append(mapping.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, &node)
	return &node
}

func TestTheAsyncAPIDocumentIsThatOfTheSchemas(t *testing.T) {
	t.Parallel()
	const file = "asyncapi.yaml"
	want := asyncapi(t)
	if *update {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what docs/schemas and events.md say: go test ./docs -run AsyncAPI -update", file)
	}
	for _, eventType := range slices.Concat(auth.EventTypes(), contact.EventTypes()) {
		if !bytes.Contains(want, []byte("    "+eventType+":\n      name: "+eventType)) {
			t.Errorf("%s has no message", eventType)
		}
	}
}

// The published parser of AsyncAPI finds neither errors nor warnings in the document, and does find
// planted ones. TestExamplesOfEventsAreValid checks the examples, which the parser ignores.
func TestTheAsyncAPIParserAcceptsTheDocument(t *testing.T) {
	t.Parallel()
	const pins = "testdata/asyncapi"
	node := testenv.Program(t, "install Node.js", "node")
	modules := testenv.NodeModules(t, pins)
	text := asyncapi(t)
	validate := func(text []byte) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*testenv.Patience)
		defer cancel()
		file := filepath.Join(t.TempDir(), "asyncapi.yaml")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(ctx, node, filepath.Join(pins, "validate.mjs"), modules, file).CombinedOutput()
		return string(out), err
	}
	if out, err := validate(text); err != nil || out != fmt.Sprintf("messages %d\n", len(schemas.All())) {
		t.Errorf("%v\n%s", err, out)
	}
	for good, bad := range map[string]string{
		"action: send\n":                   "action: publish\n",                // a word of AsyncAPI 2
		"type: boolean\n":                  "type: truth\n",                    // not a JSON Schema
		"messages/auth.UserLoggedIn.v1'\n": "messages/auth.UserLoggedIn.v2'\n", // a reference to nothing
	} {
		worse := bytes.Replace(text, []byte(good), []byte(bad), 1)
		if out, err := validate(worse); bytes.Equal(worse, text) || err == nil {
			t.Errorf("the parser accepts %q in place of %q: %s", bad, good, out)
		}
	}
}
