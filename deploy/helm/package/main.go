// Command package packs the chart as helm package does, with the version of a release:
//
//	go -C deploy/helm run ./package 1.2.3 /tmp/authctl-chart.tgz
package main

import (
	"errors"
	"fmt"
	"os"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "package:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: package VERSION FILE.tgz")
	}
	version, file := args[0], args[1]
	chart, err := loader.LoadDir("authctl")
	if err != nil {
		return fmt.Errorf("read the chart: %w", err)
	}
	chart.Metadata.Version, chart.Metadata.AppVersion = version, version
	dir, err := os.MkdirTemp("", "chart")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	packed, err := chartutil.Save(chart, dir)
	if err != nil {
		return fmt.Errorf("pack the chart: %w", err)
	}
	content, err := os.ReadFile(packed)
	if err != nil {
		return err
	}
	return os.WriteFile(file, content, 0o644) //nolint:gosec // for everybody to read
}
