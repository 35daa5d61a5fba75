package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is the module version that the Go toolchain recorded in the binary, or the
// revision that it was built from.
func version() string { return buildInfo().Version }

type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Time     string `json:"time,omitempty"`
	Modified bool   `json:"modified,omitempty"` // built from a tree with changes
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func buildInfo() build {
	b := build{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func newVersion(g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version of this build",
		Example: "  authctl version -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := buildInfo()
			words := "authctl " + b.Version
			if b.Revision != "" {
				words += "\nbuilt from " + b.Revision + " of " + b.Time
			}
			return g.tell(cmd.OutOrStdout(), b, words+"\n"+b.Go+" "+b.Platform)
		},
	}
}
