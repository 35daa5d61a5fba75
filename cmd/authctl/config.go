package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/toppira/authctl/platform/config"
	"github.com/toppira/authctl/platform/tracing"
)

func newConfig(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:   "config",
		Short: "Check and show the settings",
		Long: `Check and show the settings as the other commands see them: defaults, then
config.yaml, then .env in dev mode, then the environment, then flags. Secrets are not shown.`,
		Example: `  authctl config check --config /etc/authctl/config.yaml
  authctl config show -o json`,
	}, newConfigCheck(g), newConfigShow(g))
}

func newConfigCheck(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Report everything that is wrong with the settings",
		Long: `Report everything that is wrong with the settings, each fault with its place. Once the
settings themselves are right, the files that they name are read too: certificates, keys,
templates of mails, breached passwords. No server is asked; authctl doctor does that.`,
		Example: "  authctl config check",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := g.load(settings{}, nil)
			if err == nil {
				faults := config.CheckFiles(&s)
				if problem := tracing.Check(); problem != nil {
					faults = append(faults, config.Fault{Source: "environment", Problem: problem.Error()})
				}
				if len(faults) > 0 {
					err = faults
				}
			}
			faults, ok := errors.AsType[config.Faults](err)
			if err != nil && (!ok || g.output != "json") {
				return err
			}
			words := "the settings are fine"
			for _, r := range s.remarks {
				words += "\nnote: " + r.String()
			}
			report := map[string]any{"ok": err == nil, "faults": append(config.Faults{}, faults...),
				"remarks": append([]config.Remark{}, s.remarks...)}
			if told := g.tell(cmd.OutOrStdout(), report, words); told != nil || err == nil {
				return told
			}
			return silent{err}
		},
	}
}

func newConfigShow(g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "show",
		Short:   "Show every setting, its value and its source",
		Example: "  authctl config show",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := g.load(settings{}, nil)
			if err != nil {
				return err
			}
			keys := config.Keys(&s)
			var rows [][]string
			for _, k := range keys {
				rows = append(rows, []string{k.Path, k.Value, k.Source})
			}
			return g.table(cmd.OutOrStdout(), keys, []string{"SETTING", "VALUE", "FROM"}, rows)
		},
	}
}
