package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/toppira/authctl/modules/auth"
)

func newPassword(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:     "password",
		Short:   "Choose how expensive password hashes are",
		Example: "  authctl password calibrate",
	}, newPasswordCalibrate(g))
}

func newPasswordCalibrate(g *global) *cobra.Command {
	target := 250 * time.Millisecond
	cmd := &cobra.Command{
		Use:   "calibrate",
		Short: "Measure what a hash costs here and suggest settings",
		Long: `Measure what a password hash costs on this machine and suggest the strongest settings that stay
within the target, but never less than is safe. A sign-in computes one hash on one core. Slower
hashes protect a stolen database better and allow fewer sign-ins a second. Run it on a machine of
the servers, when nothing else runs there.`,
		Example: `  authctl password calibrate
  authctl password calibrate --target 500ms -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if target < 10*time.Millisecond || target > 10*time.Second {
				return misuse{fmt.Errorf("--target is %s; it takes 10ms to 10s", target)}
			}
			cost, err := auth.CalibrateHashing(cmd.Context(), target)
			if err != nil {
				return err
			}
			row := func(algorithm, setting string, value int, takes time.Duration) []string {
				return []string{algorithm, fmt.Sprintf("%s=%d", setting, value), milliseconds(takes), perSecond(takes)}
			}
			heading := []string{"ALGORITHM", "SETTINGS", "ONE HASH", "SIGN-INS A SECOND AND CORE"}
			return g.table(cmd.OutOrStdout(), cost, heading, [][]string{
				row("bcrypt", "AUTH_PASSWORD_BCRYPT_COST", cost.BcryptCost, cost.BcryptTakes),
				row("argon2id", "AUTH_PASSWORD_ARGON2_MEMORY_MIB", cost.Argon2Memory, cost.Argon2Takes),
			})
		},
	}
	cmd.Flags().DurationVar(&target, "target", target, "longest time for one hash")
	return cmd
}

func milliseconds(d time.Duration) string { return d.Round(time.Millisecond).String() }

func perSecond(d time.Duration) string {
	return fmt.Sprintf("%.1f", 1/max(d, time.Microsecond).Seconds())
}
