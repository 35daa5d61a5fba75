package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/toppira/authctl/modules/contact"
	"github.com/toppira/authctl/modules/contact/mail"
)

func newMail(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:   "mail",
		Short: "Look at mails, and try to send one",
		Long: `Look at the mails that people get, change their words, and try the SMTP server of mail.url. None of
these commands needs the database.`,
		Example: "  authctl mail preview reset",
	}, newMailPreview(g), newMailTest(g), newMailTemplates(g))
}

// newMailer makes the mails of these settings, for commands that open nothing else.
func (g *global) newMailer() (settings, *mail.Mailer, error) {
	s, err := g.load(settings{keyless: true}, nil)
	if err != nil {
		return s, nil, err
	}
	m, err := mail.New(s.Mail, mail.Options{Issuer: s.Auth.Token.Issuer, BaseURL: s.baseURL(), DataDir: s.App.DataDir})
	return s, m, err
}

func newMailPreview(g *global) *cobra.Command {
	var lang string
	var html bool
	cmd := &cobra.Command{
		Use:   "preview PURPOSE",
		Short: "Show a mail with sample data",
		Long: `Show a mail with sample data: its subject and its text part, or with --html its HTML part. PURPOSE is one
of ` + strings.Join(contact.PurposeNames(), ", ") + `.

The templates are those that serve would use: the built-in ones, and those in
contact.templates_dir. All of them are checked first.`,
		Example: `  authctl mail preview reset --lang de
  authctl mail preview verify --html > verify.html`,
		Args:              oneArgument,
		ValidArgsFunction: cobra.FixedCompletions(contact.PurposeNames(), cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(contact.PurposeNames(), args[0]) {
				return misuse{fmt.Errorf("there is no mail for %q; there are: %s", args[0],
					strings.Join(contact.PurposeNames(), ", "))}
			}
			_, m, err := g.newMailer()
			if err != nil {
				return err
			}
			languages := m.Templates().Languages()
			if cmd.Flags().Changed("lang") && !slices.Contains(languages, lang) {
				return misuse{fmt.Errorf("there are no templates in %q; there are: %s", lang,
					strings.Join(languages, ", "))}
			}
			made, err := m.Preview(contact.Purpose(args[0]), lang)
			if err != nil {
				return err
			}
			return g.printMail(cmd.OutOrStdout(), made, html)
		},
	}
	cmd.Flags().StringVar(&lang, "lang", "en", "language, such as de")
	cmd.Flags().BoolVar(&html, "html", false, "show the HTML part")
	return cmd
}

func (g *global) printMail(w io.Writer, made mail.Mail, html bool) error {
	if g.output == "json" {
		return printJSON(w, made)
	}
	text := "Subject: " + made.Subject + "\n\n" + made.Text
	if html {
		text = made.HTML
	}
	_, err := io.WriteString(w, text)
	return unwritten(err)
}

func newMailTest(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "test ADDRESS",
		Short: "Send a test mail now, and show each step",
		Long: `Send a test mail to an address through the server of mail.url, at once and past the outbox, and show each
step. If the server refuses, its words are shown and the exit code is 1.`,
		Example: `  authctl mail test you@example.com`,
		Args:    oneArgument,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			s, m, err := g.newMailer()
			if err != nil {
				return err
			}
			if !s.Mail.Sends() {
				what := "mails become files in " + m.Describe()
				if s.App.prod() {
					what = "this process sends no mails"
				}
				return errors.New("no SMTP server is named, so " + what + "; name one with MAIL_URL and MAIL_FROM")
			}
			defer func() { err = errors.Join(err, m.Close()) }()
			ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Minute)
			defer cancel()
			return g.testMail(ctx, m, args[0], cmd.OutOrStdout())
		},
	}
}

// mailTest is what came of a test.
type mailTest struct {
	To    string   `json:"to"`
	Steps []string `json:"steps"`
	OK    bool     `json:"ok"`
	Error string   `json:"error,omitempty"`
}

func (g *global) testMail(ctx context.Context, m *mail.Mailer, to string, w io.Writer) error {
	if g.output != "json" {
		return m.Test(ctx, to, w) // each step at once: some take long
	}
	var said strings.Builder
	failed := m.Test(ctx, to, &said)
	report := mailTest{To: to, Steps: strings.FieldsFunc(said.String(), func(r rune) bool { return r == '\n' }),
		OK: failed == nil}
	if failed != nil {
		report.Error = failed.Error()
	}
	return errors.Join(printJSON(w, report), failed)
}

func newMailTemplates(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "templates DIR",
		Short: "Write the built-in templates to a folder, to change them",
		Long: `Write the built-in templates to a folder, to change them. Name the folder in contact.templates_dir, and
delete the files that you do not change: the built-in ones are used in their place. A folder such as fr with
.txt and .html files adds a language. No file is overwritten.

serve checks all templates when it starts, and so does authctl mail preview.`,
		Example: `  authctl mail templates ./templates`,
		Args:    oneArgument,
		RunE: func(cmd *cobra.Command, args []string) error {
			written, err := mail.Export(args[0])
			if err != nil && len(written) == 0 {
				return err
			}
			return errors.Join(g.tell(cmd.OutOrStdout(), written, strings.Join(written, "\n")), err)
		},
	}
}
