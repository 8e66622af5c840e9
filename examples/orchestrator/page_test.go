package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/steadyraft/raft/examples/orchestrator/api"
	"github.com/steadyraft/raft/examples/orchestrator/cluster"
)

var (
	browserRequired = flag.Bool("browser", false, "fail instead of skipping when there is no Chromium for the test of the status page")
	screenshotFile  = flag.String("screenshot", "", "where the test of the status page leaves its picture of a cluster after a failover, as PNG; next to it one in dark")
)

// browser starts a headless Chromium, which talks to nobody but this machine.
func browser(t *testing.T) context.Context {
	t.Helper()
	program := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "headless-shell"} {
		if path, err := exec.LookPath(name); err == nil && program == "" {
			program = path
		}
	}
	if program == "" {
		if *browserRequired {
			t.Fatal("there is no Chromium: install the package chromium")
		}
		t.Skip("there is no Chromium (the package chromium); with -browser this is a failure")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.WindowSize(1400, 860),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.*"), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("lang", "en-US"), chromedp.UserDataDir(t.TempDir()))
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox) // it does not start otherwise; it shows only our own page
	}
	ctx, stop := chromedp.NewExecAllocator(t.Context(), options...)
	ctx, closeTab := chromedp.NewContext(ctx)
	require.NoError(t, chromedp.Do(ctx), "start %s", program)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits until it has ended, so that its directory can be removed
		closeTab()
		stop()
	})
	return ctx
}

// pagePorts finds a port for the status page of each manager.
func pagePorts(t *testing.T, d *demo) map[cluster.NodeID]string {
	t.Helper()
	ports := map[cluster.NodeID]string{}
	next := d.port + 10
	for _, m := range d.members {
		for ; ; next++ {
			l, err := net.Listen("tcp", net.JoinHostPort(d.managers[m.ID].host, fmt.Sprint(next)))
			if err == nil {
				require.NoError(t, l.Close())
				break
			}
		}
		ports[m.ID] = fmt.Sprint(next)
		next++
	}
	return ports
}

// The status page in a real browser: what it shows, what its buttons do, and how it goes on when the manager dies that it came from.
func TestStatusPage(t *testing.T) {
	t.Parallel()
	ctx := browser(t)
	d := found(t, testHosts()...)
	ports := pagePorts(t, d)
	for _, m := range d.members {
		require.NoError(t, d.launch(d.managers[m.ID], "up", "--page-port", ports[m.ID]))
	}
	client := api.NewClient(d.creds, d.members[1].API, d.members[2].API, d.members[0].API)
	defer client.Close()
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	data := "--data=" + d.managers["m1"].dir
	must(t, data, "compose", "up", "-d", "-f", writeCompose(t, webFile, d.program, d.port))
	must(t, data, "service", "create", "--name", "mail", "--replicas", "2", "--", d.program, webCommand)
	awaitTrue(t, "m1 leads", func() bool {
		if view(t, client).Leader != "m1" {
			runCommand(t, data, "leader", "change", "m1")
		}
		return view(t, client).Leader == "m1"
	})
	require.NoError(t, awaitNodes(t.Context(), client, 3))

	address := strings.TrimSpace(must(t, data, "page"))
	shown, _, found := strings.Cut(address, "#")
	require.True(t, found, address)

	text := func() string {
		said, _ := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body.innerText`))
		return said
	}
	do := func(actions ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		within, cancel := context.WithTimeout(ctx, testPatience)
		defer cancel()
		require.NoError(t, chromedp.Do(within, actions...), "the page says:\n%s", text())
	}
	evaluate := func(script string) string {
		t.Helper()
		within, cancel := context.WithTimeout(ctx, testPatience)
		defer cancel()
		value, err := chromedp.Run(within, chromedp.Evaluate[string](script))
		require.NoError(t, err, "%s; the page says:\n%s", script, text())
		return value
	}
	// The page's policy allows no script but its own, so that it is looked from here and not by one that waits there.
	until := func(what, condition string) {
		t.Helper()
		for began := time.Now(); evaluate("String(Boolean("+condition+"))") != "true"; {
			require.Less(t, time.Since(began), testPatience, "%s; the page says:\n%s", what, text())
		}
	}
	has := func(selector string) string { return fmt.Sprintf("document.querySelector(%q) !== null", selector) }
	count := func(selector string, n int) string {
		return fmt.Sprintf("document.querySelectorAll(%q).length === %d", selector, n)
	}
	// press clicks like a script: a picture that comes meanwhile may have moved the button.
	press := func(selector string) {
		t.Helper()
		evaluate(fmt.Sprintf("String(document.querySelector(%q).click())", selector))
	}

	// Without the token it shows everything and does nothing.
	do(chromedp.Navigate(shown))
	until("three managers, one of them leads", count("#ring g[data-manager]", 3)+"&&"+has("#ring g.leader[data-manager=m1]"))
	until("both services", has(`.service[data-service="shop_web"][data-serving="3"]`)+"&&"+has(`.service[data-service="mail"][data-serving="2"]`))
	until("read only", count("button:not(:disabled)", 0)+"&& document.querySelectorAll('button').length > 5")
	require.NotContains(t, evaluate(`document.documentElement.outerHTML`), webCommand, "what tasks run is nobody's business who has no certificate")

	// With it the buttons work: kill a task, and its node starts it again.
	do(chromedp.Navigate("about:blank"), chromedp.Navigate(address))
	until("the buttons", has("#change:not(:disabled)"))
	require.Equal(t, shown, evaluate(`document.location.toString()`), "the token does not stay in the address")
	v := view(t, client)
	task := v.State.TasksOf(v.State.ServiceByName("mail").ID)[0]
	press(fmt.Sprintf(`[data-task=%q] button`, task.ID))
	until("the restart", fmt.Sprintf(`document.querySelector('[data-task=%q]')?.innerText.includes("1 restart")`, task.ID))
	press(`[data-node=m3] button`)
	until("m3 is drained", fmt.Sprintf(`document.querySelector('[data-node=m3][data-availability=drain]') && [...document.querySelectorAll('.slot.good .where')].every(e => !e.innerText.includes("on m3")) && %s`,
		has(`.service[data-service="shop_web"][data-serving="3"]`)))
	press(`[data-node=m3] button`)
	until("m3 takes tasks", has("[data-node=m3][data-availability=active]"))
	require.NoError(t, awaitNodes(t.Context(), client, 3))

	// The manager that the page came from, which leads, is killed. The page goes on with another one.
	until("live from m1", `document.body.dataset.connected === "m1"`)
	killed := d.managers["m1"]
	require.NoError(t, killed.cmd.Process.Kill())
	<-killed.ended
	until("it notices, or is quicker than we look", `document.body.dataset.connected !== "m1"`)
	until("live from another manager", `["m2", "m3"].includes(document.body.dataset.connected)`)
	until("another leader", has("#ring g.leader:not([data-manager=m1])")+"&&"+has("#ring g.gone[data-manager=m1]"))
	until("m1 is down and its tasks are replaced", has("[data-node=m1][data-status=down]")+"&&"+
		has(`.service[data-service="shop_web"][data-serving="3"]`)+"&&"+has(`.service[data-service="mail"][data-serving="2"]`))
	evaluate(`String(document.getElementById("toast").hidden = true)`)
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	require.NoError(t, err)
	do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}},
		})
		return err
	}))
	dark, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	require.NoError(t, err)
	for _, png := range [][]byte{picture, dark} {
		require.Greater(t, len(png), 20_000, "an empty page is smaller")
	}
	require.NotEqual(t, picture, dark)
	if *screenshotFile != "" {
		require.NoError(t, os.WriteFile(*screenshotFile, picture, 0o644))
		require.NoError(t, os.WriteFile(strings.TrimSuffix(*screenshotFile, ".png")+"-dark.png", dark, 0o644))
	}

	// It does what it did before, with the same token, through the other manager.
	require.NoError(t, d.launch(killed, "up", "--page-port", ports["m1"]))
	require.NoError(t, awaitNodes(t.Context(), client, 3))
	leader := view(t, client).Leader
	until("m1 is back", has("[data-node=m1][data-status=ready]"))
	press("#change")
	awaitTrue(t, "another leader", func() bool { l := view(t, client).Leader; return l != "" && l != leader })

	// Without a quorum it says so. The one manager that is left answers.
	connected := evaluate(`document.body.dataset.connected`)
	for _, m := range d.managers {
		if string(m.ID) != connected {
			require.NoError(t, m.cmd.Process.Signal(syscall.SIGKILL))
			<-m.ended
		}
	}
	until("the alarm", `!document.getElementById("alarm").hidden`)
	u, err := url.Parse(shown)
	require.NoError(t, err)
	require.Equal(t, ports["m1"], u.Port())
}
