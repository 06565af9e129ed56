// Renders templates as Ollama does: reads {name: {template, conversations}} and writes {name: [text]}.
//
//	go run tests/go/render.go < templates.json > rendered.json
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

func main() {
	var given map[string]struct {
		Template      string      `json:"template"`
		Conversations [][]message `json:"conversations"`
	}
	must(json.NewDecoder(os.Stdin).Decode(&given))
	rendered := map[string][]string{}
	for name, one := range given {
		parsed := template.Must(template.New(name).Option("missingkey=zero").Parse(one.Template))
		for _, messages := range one.Conversations {
			var text strings.Builder
			must(parsed.Execute(&text, map[string]any{"Messages": messages}))
			rendered[name] = append(rendered[name], text.String())
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	must(encoder.Encode(rendered))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
