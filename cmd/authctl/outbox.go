package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/term"

	"github.com/toppira/authctl/modules/outbox"
	"github.com/toppira/authctl/platform/database"
)

func newOutbox(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:   "outbox",
		Short: "Watch events, send some again, handle refused ones",
		Long: `Watch events, send some again, and handle refused ones.

Every change of an account writes its event to the outbox in the same transaction. Relays
publish the events, in order for each user, and keep them for OUTBOX_RETENTION
afterwards. An event that is refused for good is parked with the later ones of its user;
other users are not affected.`,
		Example: `  authctl outbox status --watch
  authctl outbox tail --follow`,
	}, newOutboxStatus(g), newOutboxTail(g), newOutboxReplay(g), newOutboxParked(g), newOutboxTarget(g),
		newOutboxTopic(g))
}

type statusOptions struct {
	*global
	watch  bool
	every  time.Duration
	shards bool
}

func newOutboxStatus(g *global) *cobra.Command {
	o := &statusOptions{global: g, every: 2 * time.Second}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show which events wait, for how long, and which relays run",
		Long: `Show which events wait, for how long, and which relays run. --watch repeats this until
Ctrl-C, as JSON one object a line.`,
		Example: `  authctl outbox status
  authctl outbox status --watch --every 1s`,
		PreRunE: func(*cobra.Command, []string) error {
			if o.every < 100*time.Millisecond {
				return misuse{fmt.Errorf("--every is %s; it takes 100ms or more", o.every)}
			}
			return nil
		},
		RunE: g.onDatabase((*app).openExistingDatabase, o.run),
	}
	cmd.Flags().BoolVar(&o.watch, "watch", false, "repeat until Ctrl-C")
	cmd.Flags().DurationVar(&o.every, "every", o.every, "with --watch: how often")
	cmd.Flags().BoolVar(&o.shards, "shards", false, "also show every shard")
	return cmd
}

// statusReport is the state with the shards only where they are asked for, and the targets besides the
// log.
type statusReport struct {
	outbox.State
	Shards     []outbox.ShardState    `json:"shards,omitempty"`
	Deliveries []outbox.DeliveryState `json:"deliveries"`
}

func (o *statusOptions) run(ctx context.Context, a *app, _ []string) error {
	tick := time.NewTicker(o.every)
	defer tick.Stop()
	for away := false; ; {
		st, err := outbox.Status(ctx, a.db)
		var others []outbox.DeliveryState
		if err == nil {
			others, err = a.deliveries(ctx)
		}
		switch {
		case o.watch && ctx.Err() != nil:
			return nil
		case o.watch && database.IsUnavailable(err): // whoever watches wants to see it come back
			if !away {
				tellAway(a.cmd.ErrOrStderr(), err)
			}
			away = true
		case err != nil:
			return err
		default:
			away = false
			if err := o.print(a.cmd.OutOrStdout(), st, others); err != nil || !o.watch {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// tellAway says that the database cannot be used now. The error may have several lines, or not say what it is about.
func tellAway(stderr io.Writer, err error) {
	words := "the database is away: " + strings.Join(strings.Fields(harmless(err.Error())), " ") +
		"; this goes on when it is back"
	fmt.Fprintln(stderr, strings.Join(wrap(words, terminalWidth(stderr)), "\n"))
}

func (o *statusOptions) print(w io.Writer, st outbox.State, others []outbox.DeliveryState) error {
	report := statusReport{State: st, Deliveries: append([]outbox.DeliveryState{}, others...)}
	if o.shards {
		report.Shards = st.Shards
	}
	if o.output == "json" {
		if o.watch {
			return printJSONLine(w, report)
		}
		return printJSON(w, report)
	}
	limit := terminalWidth(w)
	var text strings.Builder
	var rows [][]string
	if o.watch { // the one that is shown may be old: the database may hang
		rows = append(rows, []string{"at", moment(time.Now())})
	}
	rows = append(rows, []string{"pending", fmt.Sprint(st.Pending)})
	if st.OldestAge > 0 { // not one that is sent again
		rows = append(rows, []string{"oldest", "waits for " + st.OldestAge.Round(time.Millisecond).String()})
	}
	parked := "0"
	if st.ParkedKeys > 0 {
		parked = fmt.Sprintf("%s with %s; see: authctl outbox parked list",
			count(int(st.ParkedKeys), "key", "keys"), count(int(st.ParkedEvents), "event", "events"))
	}
	rows = append(rows, []string{"parked", parked}, []string{"rate", fmt.Sprintf("%.1f events/s", st.Rate)},
		[]string{"last id", fmt.Sprint(st.LastID)})
	rows = append(rows, []string{"target", describeTarget(st.Target())})
	for _, t := range others {
		rows = append(rows, []string{"target", t.Name + ": " + describeDelivery(t)})
	}
	rows = append(rows, describeOutages(st)...)
	rows = append(rows, []string{"relays", countRelays(st)})
	for _, r := range st.Relays {
		rows = append(rows, []string{"  " + r.Name, fmt.Sprintf("%d of %s, %.1f events/s, since %s",
			r.Shards, count(len(st.Shards), "shard", "shards"), r.Rate, r.Started.Format(time.RFC3339))})
	}
	_ = printPairsWithin(&text, limit, rows)
	if st.Pending > 0 && len(st.Relays) == 0 &&
		!slices.ContainsFunc(st.Outages, func(o outbox.Outage) bool { return o.Lasts }) {
		hint := "events wait and nobody relays them: "
		if slices.ContainsFunc(currentOutages(st), func(o sharedOutage) bool { return o.NeedsPerson() }) {
			hint += "do what the outage says, then " // before that a relay would end again
		}
		fmt.Fprintln(&text, strings.Join(wrap(hint+startRelay, limit), "\n"))
	}
	if o.shards {
		_ = printTableWithin(&text, limit, shardHeading, describeShards(st))
	}
	switch {
	case o.watch && isTerminal(w) && os.Getenv("TERM") != "dumb":
		return draw(w, text.String())
	case o.watch:
		text.WriteString("\n")
	}
	_, err := io.WriteString(w, text.String())
	return unwritten(err)
}

// draw shows lines on a terminal, in place of what is there, and in one piece, so that nothing flickers. Lines that do
// not fit on the screen are left out at the end: they would push the first ones off it.
func draw(w io.Writer, text string) error {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	columns, room, err := term.GetSize(int(fileOf(w).Fd()))
	known := err == nil && columns > 0 && room > 0
	for i := 0; i < len(lines) && known; i++ {
		room -= 1 + max(0, width(lines[i])-1)/columns
		if room < 2 && i < len(lines)-1 || room < 1 { // the cursor needs a line as well
			lines = append(lines[:i], fmt.Sprintf("(%s)", count(len(lines)-i, "more line", "more lines")))
			break
		}
	}
	_, err = io.WriteString(w, "\x1b[H"+strings.Join(lines, "\x1b[K\n")+"\x1b[K\n\x1b[J")
	return unwritten(err)
}

var shardHeading = []string{"SHARD", "OWNER", "EPOCH", "LEASE", "WATERMARK", "PENDING", "OLDEST"}

func describeShards(st outbox.State) (rows [][]string) {
	names := map[string]string{}
	for _, r := range st.Relays {
		names[r.ID] = r.Name
	}
	for _, s := range st.Shards {
		owner, left, oldest := "-", "-", "-"
		if s.Owner != "" {
			owner = cmp.Or(names[s.Owner], s.Owner) // a relay that is just gone may still hold a lease
			left = s.LeaseLeft.String()
		}
		if s.OldestAge > 0 {
			oldest = s.OldestAge.Round(time.Millisecond).String()
		}
		rows = append(rows, []string{fmt.Sprint(s.Shard), owner, fmt.Sprint(s.Epoch), left, fmt.Sprint(s.Watermark),
			fmt.Sprint(s.Pending), oldest})
	}
	return rows
}

// countRelays counts the relays that work, and those that an outage keeps from it: they have not reached their target
// yet, or cannot renew their leases.
func countRelays(st outbox.State) string {
	idle := map[string]bool{}
	for _, o := range st.Outages {
		if o.Lasts && o.Target != outbox.DeliveryTargets {
			idle[o.Relay] = true
		}
	}
	for _, r := range st.Relays {
		delete(idle, r.Name)
	}
	if len(idle) == 0 {
		return fmt.Sprint(len(st.Relays))
	}
	return fmt.Sprintf("%d, and %d that cannot work: see outage", len(st.Relays), len(idle))
}

// describeOutages makes a row for each outage; one that several relays report is one row.
func describeOutages(st outbox.State) [][]string {
	var rows [][]string
	for _, o := range currentOutages(st) {
		who := o.Relay
		if o.others > 0 {
			who += fmt.Sprintf(" and %d more", o.others)
		}
		if !o.Lasts {
			who += ", which has ended"
		}
		rows = append(rows,
			[]string{"outage", fmt.Sprintf("%s since %s: %s (%s)", o.Kind, moment(o.Since), o.Error, who)})
	}
	return rows
}

// sharedOutage is an outage that other relays may report as well.
type sharedOutage struct {
	outbox.Outage
	others int
}

// currentOutages leaves out the last reports of relays that have ended, unless no relay runs and events wait, or would
// wait since a new relay would end as well.
func currentOutages(st outbox.State) []sharedOutage {
	var list []sharedOutage
	for _, o := range st.Outages {
		if !o.Lasts && (len(st.Relays) > 0 || st.Pending == 0 && !o.NeedsPerson()) {
			continue
		}
		i := slices.IndexFunc(list, func(s sharedOutage) bool {
			return s.Target == o.Target && s.Kind == o.Kind && s.Error == o.Error && s.Lasts == o.Lasts
		})
		if i < 0 {
			list = append(list, sharedOutage{Outage: o})
		} else {
			list[i].others++
		}
	}
	return list
}

// eventReport is an event as an operator sees it.
type eventReport struct {
	ID    int64  `json:"id"` // the first member, before where
	Where string `json:"where,omitempty"`
	outbox.Record
	Data json.RawMessage `json:"data"` // not the bytes of the record, which would be base64
}

func reportEvent(r outbox.Record, where string) eventReport {
	return eventReport{ID: r.ID, Where: where, Record: r, Data: r.Data}
}

// line is the event on one line. Columns are of fixed width: more may follow at any time.
func (e eventReport) line() string {
	where := e.Where
	if e.Replay {
		where += " again"
	}
	return fmt.Sprintf("%-8d %-27s %-9s %-33s %s #%d %s", e.ID, e.Time, where, e.Type, e.Key, e.Seq, e.Data)
}

func newOutboxTail(g *global) *cobra.Command {
	opt := outbox.TailOptions{Last: 10}
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Show the latest events, and new ones as they come",
		Long: `Show the latest events, and with --follow new ones as they are committed, published or not.
As JSON it is one object a line.`,
		Example: `  authctl outbox tail --follow
  authctl outbox tail --type auth.UserLoggedIn.v1 --last 100 -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opt.Last < 0 {
				return misuse{errors.New("--last takes no negative number")}
			}
			if cmd.Flags().Changed("from") && opt.From < 1 { // 0 would mean that it is not given
				return misuse{errors.New("--from is the id of an event, and ids begin with 1")}
			}
			return g.withDatabase(cmd, (*app).openExistingDatabase, func(ctx context.Context, a *app) error {
				out := bufio.NewWriter(cmd.OutOrStdout())
				if opt.From > 0 {
					concerns := func(id int64, _ time.Time) bool { return opt.From < id }
					if err := a.noteGone(ctx, concerns); err != nil {
						return err
					}
				}
				// Whoever follows wants to see it come back.
				opt.Away = func(err error) { tellAway(cmd.ErrOrStderr(), err) }
				shown := 0
				err := outbox.Tail(ctx, a.db, opt, func(e outbox.Entry) error {
					shown++
					if err := g.printEvent(out, reportEvent(e.Record, e.Where)); err != nil || !opt.Follow {
						return err
					}
					return out.Flush()
				})
				if opt.Follow && ctx.Err() != nil {
					err = nil
				}
				if err == nil && shown == 0 && !opt.Follow && (opt.Last > 0 || opt.From > 0) {
					fmt.Fprintln(cmd.ErrOrStderr(), "there is no such event")
				}
				if err != nil {
					_ = out.Flush()
					return err
				}
				return out.Flush()
			})
		},
	}
	cmd.Flags().BoolVarP(&opt.Follow, "follow", "f", false, "show new events until Ctrl-C")
	cmd.Flags().IntVarP(&opt.Last, "last", "n", opt.Last, "begin with this many of the newest")
	cmd.Flags().Int64Var(&opt.From, "from", 0, "begin with the event with this id instead")
	cmd.Flags().StringVar(&opt.Type, "type", "", "only events of this type")
	cmd.Flags().StringVar(&opt.Key, "key", "", "only events of this key (a user's id)")
	cmd.MarkFlagsMutuallyExclusive("last", "from")
	return cmd
}

func (g *global) printEvent(w io.Writer, e eventReport) error {
	if g.output == "json" {
		return printJSONLine(w, e)
	}
	_, err := fmt.Fprintln(w, harmless(e.line()))
	return err
}

type replayOptions struct {
	*global
	selection    outbox.Selection
	target       chosenTarget
	since, until string
	yes          bool
}

func newOutboxReplay(g *global) *cobra.Command {
	o := &replayOptions{global: g}
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Publish events again",
		Long: `Publish events again, for instance for a new consumer. They have the same ids and the
same bytes, and are marked with the extension attribute replay. An event must match all the flags.
Without --yes the command only says what would be sent.

--target names a webhook that gets the events, of the types that it wants, instead of the log.

Consumers get events again that they already have. Events that wait or are parked are not
affected. Running it again does no harm. The exit code is 1 when no event matches.`,
		Example: `  authctl outbox replay --since 24h
  authctl outbox replay --from-id 1000 --to-id 2000 --type auth.UserRegistered.v1 --yes
  authctl outbox replay --target log --since 1h`,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	cmd.Flags().StringVar(&o.since, "since", "", "written at or after this time (RFC 3339), or within this "+
		"duration (24h)")
	cmd.Flags().StringVar(&o.until, "until", "", "written before this time, or longer ago than this duration")
	cmd.Flags().Int64Var(&o.selection.FromID, "from-id", 0, "with this id or a later one")
	cmd.Flags().Int64Var(&o.selection.ToID, "to-id", 0, "with this id or an earlier one")
	cmd.Flags().StringVar(&o.selection.Key, "key", "", "of this key (a user's id)")
	cmd.Flags().StringVar(&o.selection.Type, "type", "", "of this type")
	o.target.add(cmd, logTarget, "which target gets them")
	cmd.Flags().BoolVar(&o.yes, "yes", false, "send the events")
	return cmd
}

// replay is [outbox.Replay] to the chosen target.
func (o *replayOptions) replay(
	ctx context.Context, a *app, sel outbox.Selection, dryRun bool, progress func(outbox.ReplayResult),
) (outbox.ReplayResult, error) {
	to, err := o.target.find(ctx, a)
	switch {
	case err != nil:
		return outbox.ReplayResult{}, err
	case to == nil:
		return outbox.Replay(ctx, a.db, sel, dryRun, progress)
	case len(to.Types) == 0:
		return outbox.ReplayResult{}, fmt.Errorf("the target %s gets no events of the log, so none can be sent again",
			to.Name)
	}
	return outbox.ReplayTo(ctx, a.db, *to, sel, dryRun, progress)
}

func (o *replayOptions) run(cmd *cobra.Command) error {
	now := time.Now()
	sel := o.selection
	var err error
	if sel.From, err = parseMoment("since", o.since, now); err != nil {
		return err
	}
	if sel.To, err = parseMoment("until", o.until, now); err != nil {
		return err
	}
	given := cmd.Flags().Changed
	switch {
	case given("from-id") && sel.FromID < 1, given("to-id") && sel.ToID < 1:
		return misuse{errors.New("ids begin with 1")}
	case given("from-id") && given("to-id") && sel.FromID > sel.ToID:
		return misuse{fmt.Errorf("--from-id %d is after --to-id %d, so no event is between them", sel.FromID, sel.ToID)}
	case !sel.From.IsZero() && !sel.To.IsZero() && !sel.From.Before(sel.To):
		return misuse{fmt.Errorf("--since %s is not before --until %s, so no event is between them", moment(sel.From),
			moment(sel.To))}
	case sel == (outbox.Selection{}):
		return misuse{errors.New("say which events: --since, --until, --from-id, --to-id, --key, --type; --from-id 1 " +
			"means all")}
	}
	return o.withDatabase(cmd, (*app).openExistingDatabase, func(ctx context.Context, a *app) error {
		found, err := o.replay(ctx, a, sel, true, nil)
		if err != nil {
			return err
		}
		if err := a.noteGone(ctx, func(id int64, at time.Time) bool {
			switch {
			case sel.FromID > 0:
				return sel.FromID < id
			case !sel.From.IsZero():
				return id > 1 && sel.From.Before(at)
			}
			return id > 1
		}); err != nil {
			return err
		}
		if found.Matched == 0 {
			return o.nothingChosen(cmd.OutOrStdout(), found)
		}
		if !o.yes {
			return o.print(cmd.OutOrStdout(), found)
		}
		sel.ToID = found.LastID // what was counted, and nothing that comes meanwhile
		bar := newProgress(cmd.ErrOrStderr(), found.Matched, "replaying", progressbar.OptionShowCount(),
			progressbar.OptionShowIts(), progressbar.OptionSetItsString("events"))
		sent, err := o.replay(ctx, a, sel, false, func(r outbox.ReplayResult) { _ = bar.Set64(r.Matched) })
		_ = bar.Clear()
		if sent.Enqueued > 0 {
			a.security.Info("events_replayed", zap.String("target", o.target.name), zap.Int64("events", sent.Enqueued),
				zap.Int64("from_id", sent.FirstID), zap.Int64("to_id", sent.LastID))
		}
		if err != nil {
			return fmt.Errorf("%w; %s enqueued before, and running it again does no harm", err,
				count(int(sent.Enqueued), "event was", "events were"))
		}
		sent.Parked = found.Parked
		if err := o.print(cmd.OutOrStdout(), sent); err != nil {
			return err
		}
		return a.noteWaits(ctx, o.target.name)
	})
}

// nothingChosen says that there is nothing to send, which is a failure: somebody meant some.
func (o *replayOptions) nothingChosen(w io.Writer, r outbox.ReplayResult) error {
	if o.output == "json" {
		if err := o.print(w, r); err != nil {
			return err
		}
	}
	if r.Parked > 0 {
		return fmt.Errorf("no event is chosen that can be sent again: %s parked; see: authctl outbox parked list",
			count(int(r.Parked), "event is", "events are"))
	}
	return errors.New("no kept event matches all the flags")
}

// noteGone says where what is kept begins, if that matters.
func (a *app) noteGone(ctx context.Context, matters func(id int64, at time.Time) bool) error {
	id, at, err := outbox.Oldest(ctx, a.db)
	if err != nil || id == 0 || !matters(id, at) {
		return err
	}
	fmt.Fprintf(a.cmd.ErrOrStderr(), "events before id %d, of %s, are not kept any more (OUTBOX_RETENTION)\n", id,
		moment(at))
	return nil
}

// replayReport is a replay, or what one would do.
type replayReport struct {
	DryRun bool `json:"dry_run"`
	outbox.ReplayResult
}

func (o *replayOptions) print(w io.Writer, r outbox.ReplayResult) error {
	events := count(int(r.Matched), "event", "events")
	text := fmt.Sprintf("%s would be sent again, ids %d to %d; send them with --yes", events, r.FirstID, r.LastID)
	if o.yes {
		text = fmt.Sprintf("%d of %s, ids %d to %d, will be sent again", r.Enqueued, events, r.FirstID, r.LastID)
		if r.Enqueued < r.Matched {
			text += "; the others wait anyway"
		}
	}
	if r.Parked > 0 {
		text += fmt.Sprintf("\n%s parked and left; see: authctl outbox parked list",
			count(int(r.Parked), "more event is", "more events are"))
	}
	return o.tell(w, replayReport{DryRun: !o.yes, ReplayResult: r}, text)
}

func newOutboxParked(g *global) *cobra.Command {
	return group(&cobra.Command{
		Use:   "parked",
		Short: "Handle events that were refused for good",
		Long: `Handle events that were refused for good, such as one larger than the topic allows. Such an
event is parked, and the later ones of its key wait, since they must not overtake
it. They wait until you decide: retry sends them again, discard gives the refused one up.

A key is parked for one target, and the others get its events. A webhook's key is also parked when
an event was not acknowledged for OUTBOX_WEBHOOK_RETRY_FOR.`,
		Example: "  authctl outbox parked list",
	}, newParkedList(g), newParkedShow(g), newParkedRetry(g), newParkedDiscard(g))
}

func newParkedList(g *global) *cobra.Command {
	var target chosenTarget
	all := false
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the parked keys, and why they are parked",
		Long: `List the parked keys of all targets, and why they are parked. --all also lists the held keys of webhooks
and mail, which are tried again by themselves.`,
		Example: `  authctl outbox parked list
  authctl outbox parked list --target mail --all`,
		RunE: g.onDatabase((*app).openExistingDatabase, func(ctx context.Context, a *app, _ []string) error {
			list, err := target.listParked(ctx, a, all)
			if err != nil {
				return err
			}
			w := a.cmd.OutOrStdout()
			if len(list) == 0 {
				return g.tell(w, list, "no key is parked")
			}
			var rows [][]string
			for _, k := range list {
				since := moment(k.ParkedAt)
				if k.ParkedAt.IsZero() {
					since = "tried again " + whenAgain(k)
				}
				rows = append(rows, []string{k.Key, cmp.Or(k.Target, logTarget), fmt.Sprint(k.Events), fmt.Sprint(k.ID),
					k.Type, since, k.Error})
			}
			return g.table(w, list, []string{"KEY", "TARGET", "EVENTS", "REFUSED", "TYPE", "SINCE", "ERROR"}, rows)
		}),
	}
	target.add(cmd, "", "only of this target: log, or a name of authctl outbox target list")
	cmd.Flags().BoolVar(&all, "all", false, "also keys that are tried again by themselves")
	return cmd
}

// onParked makes what cobra runs for a command on a parked key, which is its argument. The target is nil for the log.
func (g *global) onParked(
	target *chosenTarget, do func(ctx context.Context, a *app, to *outbox.Subscription, key string) error,
) runE {
	return g.onDatabase((*app).openExistingDatabase, func(ctx context.Context, a *app, args []string) error {
		key := strings.Join(args, "") // one, or none with --all
		to, err := target.find(ctx, a)
		if err == nil {
			err = do(ctx, a, to, key)
		}
		if errors.Is(err, outbox.ErrNotParked) {
			return target.notParked(ctx, a, key)
		}
		return err
	})
}

// notParked says that a key is not parked for the target, and for which others it is.
func (c *chosenTarget) notParked(ctx context.Context, a *app, key string) error {
	list, err := (&chosenTarget{}).listParked(ctx, a, true)
	if err != nil {
		return err
	}
	var others []string
	for _, k := range list {
		switch target := cmp.Or(k.Target, logTarget); {
		case k.Key != key, k.Events == 0:
		case target == c.name:
			return fmt.Errorf("the key %q is not parked for %s: it is tried again by itself, %s", key, target,
				whenAgain(k))
		case !k.ParkedAt.IsZero():
			others = append(others, "--target "+target)
		}
	}
	if len(others) > 0 {
		return fmt.Errorf("the key %q is not parked for %s, but elsewhere: say %s", key, c.name,
			strings.Join(others, " or "))
	}
	return fmt.Errorf("the key %q is not parked; see: authctl outbox parked list", key)
}

// pasteParked is an example that works when pasted: for each key that is parked for the log.
func pasteParked(command string) string {
	return "  authctl outbox parked list --target log -o json | jq -r '.[].key' | xargs -rn1 " + command
}

func newParkedShow(g *global) *cobra.Command {
	var target chosenTarget
	cmd := &cobra.Command{
		Use:     "show KEY",
		Short:   "Show the waiting events of a parked key, the refused one first",
		Example: pasteParked("authctl outbox parked show"),
		Args:    oneArgument,
		RunE: g.onParked(&target, func(ctx context.Context, a *app, to *outbox.Subscription, key string) (err error) {
			var list []outbox.Record
			if to == nil {
				list, err = outbox.ParkedEvents(ctx, a.db, key)
			} else {
				list, err = outbox.HeldEvents(ctx, a.db, *to, key)
			}
			if err != nil {
				return err
			}
			out := bufio.NewWriter(a.cmd.OutOrStdout())
			for _, r := range list {
				if err := g.printEvent(out, reportEvent(r, "parked")); err != nil {
					return err
				}
			}
			return out.Flush()
		}),
	}
	target.add(cmd, logTarget, "of this target")
	return cmd
}

func newParkedRetry(g *global) *cobra.Command {
	var target chosenTarget
	all := false
	cmd := &cobra.Command{
		Use:   "retry (KEY | --all --target NAME)",
		Short: "Send a parked key's events again, the refused one first",
		Long: `Send a parked key's events again, the refused one first, after you removed the cause.
If it is refused again it is parked again. A key of a webhook or of mail that is tried again by itself
is tried at once. --all sends those of every parked key of a webhook or of mail, for instance after its
receiver was away for longer than OUTBOX_WEBHOOK_RETRY_FOR.`,
		Example: pasteParked("authctl outbox parked retry") + `
  authctl outbox parked retry --all --target mail`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case all && len(args) > 0:
				return misuse{errors.New("name a key, or --all, not both")}
			case all && target.isLog():
				return misuse{errors.New("--all needs --target with the name of a webhook, or mail")}
			case !all && len(args) != 1:
				return misuse{errors.New("name one key, or --all with --target")}
			}
			return nil
		},
		RunE: g.onParked(&target, func(ctx context.Context, a *app, to *outbox.Subscription, key string) (err error) {
			var n int64
			switch {
			case all: // not of the log
				return g.retryAll(ctx, a, *to)
			case to == nil:
				n, err = outbox.RetryParked(ctx, a.db, key)
			default:
				n, err = outbox.RetryHeld(ctx, a.db, *to, key)
			}
			if err != nil {
				return err
			}
			a.security.Info("parked_events_retried", zap.String("target", target.name), zap.String("key", key),
				zap.Int64("events", n))
			return g.tellUnparked(ctx, a, target, key, n, "")
		}),
	}
	target.add(cmd, logTarget, "of this target")
	cmd.Flags().BoolVar(&all, "all", false, "every parked key of the target")
	return cmd
}

func newParkedDiscard(g *global) *cobra.Command {
	var target chosenTarget
	yes, event := false, int64(0)
	cmd := &cobra.Command{
		Use:   "discard KEY",
		Short: "Give a refused event up and send the later ones of its key",
		Long: `Give a refused event up and send the later ones of its key. Consumers see a gap in the key's
sequence. outbox replay can still send the event until its retention is over, but no mail.

The argument is a key and not an event, because only one event of a key can be given up: the first,
which outbox parked list names under REFUSED. Nobody has refused the later ones yet, and they may
not overtake it. If one of them is refused too, the key is parked again, and you decide again.
In a script give --event as well: run twice, it then gives up no second event.`,
		Example: pasteParked("authctl outbox parked discard --yes"),
		Args:    oneArgument,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				return misuse{fmt.Errorf("the target %s will never get the event: say --yes if you mean it",
					target.name)}
			}
			if cmd.Flags().Changed("event") && event < 1 { // 0 would mean whichever is refused
				return misuse{errors.New("--event is the id of an event, which is 1 or more")}
			}
			return nil
		},
		RunE: g.onParked(&target, func(ctx context.Context, a *app, to *outbox.Subscription, key string) (err error) {
			var n int64
			if to == nil {
				n, err = outbox.DiscardParked(ctx, a.db, key, event)
			} else {
				n, err = outbox.DiscardHeld(ctx, a.db, *to, key, event)
			}
			if errors.Is(err, outbox.ErrOtherRefused) {
				return fmt.Errorf("event %d of the key %q is not the refused one, and nothing was done; see: "+
					"authctl outbox parked list", event, key)
			}
			if err != nil { // done twice, it would give up the key's next event if that is refused as well
				return maybeDone(err, "look at authctl outbox parked list before you run it again")
			}
			a.security.Warn("parked_event_discarded", zap.String("target", target.name), zap.String("key", key),
				zap.Int64("events", n))
			return g.tellUnparked(ctx, a, target, key, n, "the refused event is given up; ")
		}),
	}
	target.add(cmd, logTarget, "of this target")
	cmd.Flags().BoolVar(&yes, "yes", false, "discard the event")
	cmd.Flags().Int64Var(&event, "event", 0, "only if this is the refused event, by its id under REFUSED")
	return cmd
}

// tellUnparked says that n events of a key will be sent, and what keeps them from it.
func (g *global) tellUnparked(
	ctx context.Context, a *app, target chosenTarget, key string, n int64, first string,
) error {
	err := g.tell(a.cmd.OutOrStdout(), map[string]any{"key": key, "enqueued": n},
		fmt.Sprintf("%s%s of %s will be sent", first, count(int(n), "event", "events"), key))
	if err != nil || n == 0 {
		return err
	}
	return a.noteWaits(ctx, target.name)
}
