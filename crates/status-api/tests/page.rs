//! The status page in a real browser.
//!
//! The pictures land in the target directory's `screenshots`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use axum::{
    Router,
    response::{Sse, sse::Event},
    routing::get,
};
use common::{
    ANY, Node, Running, container, failed, removed, scaled_down, snapshot, webdriver::Browser,
    woken_up,
};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use zeropod_status_api::{
    Limits,
    api::{Container, Degraded, Operation, Resources, Status, Totals},
    local,
};

/// A board with a bit of everything.
fn busy() -> Node {
    let node = Node::new();
    let pods = [
        "api-gateway-7d9f8b6c5-x2k9p",
        "billing-reports-0",
        "customer-portal-5b8d7c9f4-lm2qz",
        "docs-preview-6f5d4c3b2-9xkwp",
        "feature-checkout-redesign-7c6b5d4f3-h8j2n",
        "grafana-staging-0",
        "invoice-renderer-84d5c6b7f-q4w7r",
        "legacy-soap-bridge-0",
        "mail-sandbox-5d4c3b2a1-t6y8u",
        "notifications-59c8d7b6f-z1x3c",
        "search-indexer-0",
        "wiki-5f6g7h8j9-v4b5n",
    ];
    node.apply(&snapshot(pods));
    let mut given_back = BTreeMap::new();
    for (n, pod) in pods.iter().enumerate().filter(|(n, _)| n % 3 != 0) {
        for _ in 0..n {
            let millis = u64::try_from(n).unwrap() * 23;
            node.apply(&scaled_down(pod, Duration::from_millis(180 + millis)));
            node.apply(&woken_up(pod, Duration::from_millis(40 + millis / 2)));
        }
        if n % 3 == 2 {
            node.apply(&scaled_down(pod, Duration::from_millis(210)));
            let given = Resources { cpu_cores: 0.25, memory_bytes: 192 << 20 };
            given_back.insert(container(pod), given);
        }
    }
    node.board.set_given_back(given_back);
    node.apply(&failed(pods[7]));
    node
}

fn trouble(name: &'static str, detail: &str, unready: bool) -> Degraded {
    Degraded { name: name.into(), detail: detail.into(), unready }
}

/// Serves the page under `/told/`, with a stream that tells just this.
async fn serve_snapshot(status: Value) -> Running {
    let stream = move || {
        let first = Event::default().event("snapshot").data(status.to_string());
        let first = stream::once(async { Ok::<_, Infallible>(first) });
        async { Sse::new(first.chain(stream::pending())) }
    };
    let routes = |shutdown| {
        let page = local(Node::new().board, shutdown);
        Router::new().route("/told/api/v1/stream", get(stream)).nest_service("/told/", page)
    };
    Running::start(ANY, Limits::default(), routes).await
}

/// The row of a pod, as an expression.
fn row(pod: &str) -> String {
    format!("[...document.querySelectorAll('#rows tr')].find(r => r.innerText.includes('{pod}'))")
}

const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
const ESCAPE: &str = "\u{e00c}";
const RIGHT: &str = "\u{e014}";

const SCROLLS_SIDEWAYS: &str =
    "document.documentElement.scrollWidth > document.documentElement.clientWidth";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_paint_live_changes_and_both_color_schemes() {
    let Some(browser) = Browser::start().await else { return };
    let node = busy();
    let server = node.serve().await;
    browser.size(1280, 800, false).await;
    browser.prefer("light").await;
    browser.open(&format!("http://{}/", server.addr)).await;
    browser.until("document.querySelectorAll('#rows tr').length === 12").await;
    browser.until("document.getElementById('connection').innerText === 'Live'").await;
    assert_eq!(browser.run("return document.title").await, "worker-3 · zeropod");
    assert_eq!(
        browser.run("return document.getElementById('total-scaled-down').innerText").await,
        "4"
    );
    let ground = "return getComputedStyle(document.body).backgroundColor";
    let light = browser.run(ground).await;
    browser.screenshot("status-page").await;

    // Live: a scale-down, what it gives back, and a wake-up.
    let pod = "api-gateway-7d9f8b6c5-x2k9p";
    node.apply(&scaled_down(pod, Duration::from_millis(432)));
    let given = Resources { cpu_cores: 1.5, memory_bytes: 512 << 20 };
    node.board.set_given_back([(container(pod), given)].into());
    let row = row(pod);
    browser.until(&format!("{row}.innerText.includes('Scaled down')")).await;
    browser.until(&format!("{row}.innerText.includes('432 ms')")).await;
    browser.until(&format!("{row}.innerText.includes('1.5 CPU · 512 MiB')")).await;
    browser.until("document.getElementById('total-scaled-down').innerText === '5'").await;
    node.apply(&woken_up(pod, Duration::from_millis(76)));
    node.board.set_given_back(BTreeMap::new());
    browser.until(&format!("{row}.innerText.includes('Running')")).await;
    browser.until(&format!("{row}.innerText.includes('76 ms')")).await;
    // Time passes on the page without news.
    browser
        .until(&format!(
            "/\\b[1-9]\\d* s\\b/.test({row}.querySelector('[data-label=For]').innerText)"
        ))
        .await;
    node.apply(&removed(pod));
    browser.until(&format!("!{row}")).await;

    // What is wrong comes and goes, too.
    node.board.set_degraded(
        "shims",
        vec![
            trouble("shim-disconnected", "shim 3f9a: connection refused", false),
            trouble("redirector-unsupported", "this kernel has no BPF", true),
        ],
    );
    browser.until("document.querySelectorAll('.trouble').length === 2").await;
    browser.screenshot("status-page-degraded").await;
    browser.prefer("dark").await;
    assert_ne!(browser.run(ground).await, light, "dark mode changes the ground");
    browser.screenshot("status-page-dark").await;
    node.board.set_degraded("shims", Vec::new());
    browser.until("document.getElementById('degraded').hidden").await;
    // A hundred of a kind take one line.
    let dead: Vec<_> =
        (0..100).map(|n| trouble("shim-dead", &format!("shim {n}"), false)).collect();
    node.board.set_degraded("shims", dead);
    browser.until("document.querySelectorAll('.trouble').length === 1").await;
    let text = browser.run("return document.querySelector('.trouble').innerText").await;
    let text = text.as_str().unwrap();
    assert!(text.contains("shim-dead × 100") && text.contains("and 97 more"), "{text}");

    assert_eq!(browser.complaints().await, [""; 0]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_right_again_after_the_connection_drops() {
    let Some(browser) = Browser::start().await else { return };
    let node = Node::new();
    node.apply(&snapshot(["stays", "goes"]));
    let server = node.serve().await;
    let addr = server.addr;
    browser.size(1280, 500, false).await;
    browser.open(&format!("http://{addr}/")).await;
    browser.until("document.querySelectorAll('#rows tr').length === 2").await;

    server.stop().await;
    browser
        .until("document.getElementById('connection').innerText.includes('Connection lost')")
        .await;
    assert_eq!(
        browser.run("return document.querySelectorAll('#rows tr').length").await,
        2,
        "what was true last stays to be seen"
    );
    browser.screenshot("status-page-lost").await;
    node.apply(&removed("goes"));
    node.apply(&scaled_down("stays", Duration::from_millis(250)));
    node.apply(&snapshot(["stays", "comes"]));

    let server = node.serve_at(addr).await;
    browser.until("document.getElementById('connection').innerText === 'Live'").await;
    browser.until(&format!("!{} && {}", row("goes"), row("comes"))).await;
    node.apply(&scaled_down("comes", Duration::from_millis(250)));
    browser.until(&format!("{}.innerText.includes('Scaled down')", row("comes"))).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_rows_filter_sort_and_keyboard() {
    let Some(browser) = Browser::start().await else { return };
    let node = Node::new();
    let pods: Vec<String> = (0..500).map(|n| format!("service-{n:03}-6f5d4c3b2-9xkwp")).collect();
    node.apply(&snapshot(pods.iter().map(String::as_str)));
    let server = node.serve().await;
    browser.size(1280, 800, false).await;
    browser.open(&format!("http://{}/", server.addr)).await;
    browser.until("document.querySelectorAll('#rows tr').length === 500").await;

    // A storm of changes, coalesced into frames. Work is counted, not time.
    browser
        .run(
            "window.paints = 0; new MutationObserver(() => window.paints += 1).observe(\
                 document.getElementById('total-scaled-down'), { childList: true })",
        )
        .await;
    for pod in &pods {
        node.apply(&scaled_down(pod, Duration::from_millis(250)));
    }
    browser.until("document.getElementById('total-scaled-down').innerText === '500'").await;
    let paints = browser.run("return window.paints").await.as_u64().unwrap();
    assert!(paints < 250, "{paints} paints for 500 changes");
    browser.screenshot("status-page-500").await;

    // Sort by a figure: the largest first. The one woken last is the only one.
    for _ in 0..3 {
        node.apply(&woken_up(&pods[321], Duration::from_millis(60)));
        node.apply(&scaled_down(&pods[321], Duration::from_millis(60)));
    }
    node.apply(&woken_up(&pods[321], Duration::from_millis(60)));
    browser.run("document.querySelector('th[data-column=wake-ups] button').focus()").await;
    browser.press(&[ENTER]).await;
    browser.until("document.querySelector('#rows tr').innerText.includes('service-321')").await;
    let sorted =
        "return document.querySelector('th[data-column=wake-ups]').getAttribute('aria-sort')";
    assert_eq!(browser.run(sorted).await, "descending");
    browser.press(&[ENTER]).await;
    browser
        .until("document.querySelector('#rows tr:last-child').innerText.includes('service-321')")
        .await;

    // The keyboard alone: find, look, and go on to the phases.
    browser.press(&["/"]).await;
    assert_eq!(browser.run("return document.activeElement.id").await, "filter");
    browser.press(&["3", "2", "1"]).await;
    browser.until("document.querySelectorAll('#rows tr').length === 1").await;
    assert_eq!(browser.run("return document.getElementById('count').innerText").await, "1 of 500");
    browser.press(&[TAB, RIGHT, RIGHT]).await;
    browser.until("document.querySelectorAll('#rows tr').length === 0").await;
    browser.until("document.getElementById('empty').innerText === 'No container matches.'").await;
    browser.press(&["/"]).await;
    browser.press(&[ESCAPE]).await;
    browser.until("document.querySelectorAll('#rows tr').length === 499").await;
    let outline = "return getComputedStyle(document.activeElement).outlineStyle";
    assert_ne!(browser.run(outline).await, "none", "the focus is to be seen");
    assert_eq!(browser.complaints().await, [""; 0]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_phone_shows_everything_without_scrolling_sideways() {
    let Some(browser) = Browser::start().await else { return };
    let node = busy();
    node.board.set_degraded("shims", vec![trouble("shim-dead", &"3f9a".repeat(16), false)]);
    let server = node.serve().await;
    for (width, scheme) in [(390, "light"), (320, "dark")] {
        browser.size(width, 844, true).await;
        browser.prefer(scheme).await;
        browser.open(&format!("http://{}/", server.addr)).await;
        browser.until("document.querySelectorAll('#rows tr').length === 12").await;
        let sideways = browser.run(&format!("return {SCROLLS_SIDEWAYS}")).await;
        browser.screenshot(&format!("status-page-phone-{width}")).await;
        assert_eq!(sideways, json!(false), "at {width}");
        let hidden = "return [...document.querySelectorAll('#rows td')]\
                      .filter(td => td.getBoundingClientRect().width === 0).length";
        assert_eq!(browser.run(hidden).await, json!(0), "every column is there");
    }
    // The header of the table is gone; its order is in a list.
    browser
        .run(
            "const s = document.getElementById('sort'); s.value = 'wake-ups';\
                 s.dispatchEvent(new Event('change', { bubbles: true }))",
        )
        .await;
    browser
        .until(
            "document.querySelector('#rows tr').innerText.includes('wiki')\
                   || document.querySelector('#rows tr').innerText.includes('search-indexer')",
        )
        .await;
    assert_eq!(browser.complaints().await, [""; 0]);
    server.stop().await;
}

/// The picture in the docs: a node after a day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_for_the_docs() {
    let Some(browser) = Browser::start().await else { return };
    let now = jiff::Timestamp::now();
    let ago = |seconds: i64| Some(now - jiff::SignedDuration::from_secs(seconds));
    let containers: Vec<Container> = [
        ("docs", "handbook-preview-6f5d4c3b2-9xkwp", "web", true, 12_043, 212, 61, 14, 0),
        ("docs", "wiki-5f6c7b8d9-v4b5n", "wiki", true, 2_712, 1_430, 310, 22, 0),
        ("mail", "mail-sandbox-5d4c3b2a1-t6y8u", "smtp", true, 41_507, 96, 34, 3, 0),
        ("monitoring", "grafana-staging-0", "grafana", false, 184, 640, 128, 9, 0),
        ("shop", "customer-portal-5b8d7c9f4-lm2qz", "portal", true, 634, 388, 92, 41, 0),
        ("shop", "feature-checkout-redesign-7c6b5d4f3-h8j2n", "app", false, 41, 405, 77, 17, 0),
        ("shop", "invoice-renderer-84d5c6b7f-q4w7r", "renderer", true, 7_301, 2_210, 540, 6, 0),
        ("shop", "legacy-soap-bridge-0", "bridge", false, 5_922, 0, 0, 2, 1),
        ("shop", "search-indexer-0", "indexer", false, 9, 871, 204, 118, 0),
        ("team-a", "api-gateway-7d9f8b6c5-x2k9p", "envoy", true, 318, 143, 38, 73, 0),
        ("team-b", "batch-reports-0", "reports", true, 73_201, 950, 260, 1, 0),
    ]
    .into_iter()
    .map(|(namespace, pod, container, down, since, checkpoint, restore, wake_ups, failures)| {
        let operation = |millis: u32, back: i64| {
            let ended = ago(back).unwrap();
            (millis > 0).then(|| Operation { ended, seconds: f64::from(millis) / 1000.0 })
        };
        let given = Resources { cpu_cores: 0.25, memory_bytes: u64::from(checkpoint) << 20 };
        Container {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            container: container.to_owned(),
            phase: if down { "SCALED_DOWN" } else { "RUNNING" }.into(),
            since: ago(since),
            last_checkpoint: operation(checkpoint, since + 200),
            last_restore: operation(restore, since + 100),
            wake_ups,
            checkpoint_failures: failures,
            restore_failures: 0,
            scaled_down_seconds: f64::from(u32::try_from(since).unwrap()) * 1.2,
            gives_back: down.then_some(given),
        }
    })
    .collect();
    let status = Status {
        node: "worker-3".into(),
        version: "zeropod-manager 0.1.0".into(),
        at: now,
        totals: Totals::default(),
        degraded: Vec::new(),
        containers,
    };
    let server = serve_snapshot(serde_json::to_value(status).unwrap()).await;
    browser.size(1280, 720, false).await;
    browser.prefer("light").await;
    browser.open(&format!("http://{}/told/", server.addr)).await;
    browser.until("document.querySelectorAll('#rows tr').length === 11").await;
    browser.screenshot("docs").await;
    browser.prefer("dark").await;
    browser.size(1480, 720, false).await;
    browser.screenshot("docs-dark").await;
    assert_eq!(browser.complaints().await, [""; 0]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_like_markup_stay_text() {
    let Some(browser) = Browser::start().await else { return };
    let evil = r#"<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>"#;
    let status = json!({
        "node": evil, "version": evil, "at": "2026-01-01T00:00:00Z",
        "degraded": [{ "name": evil, "detail": evil, "unready": true }],
        "containers": [{
            "namespace": evil, "pod": evil, "container": evil, "phase": evil, "since": null,
            "last_checkpoint": null, "last_restore": null, "wake_ups": 1, "checkpoint_failures": 2,
            "restore_failures": 0, "scaled_down_seconds": 0, "gives_back": null,
        }],
    });
    // The server itself accepts no such names, so another one sends them.
    let server = serve_snapshot(status).await;
    browser.size(1280, 500, false).await;
    browser.open(&format!("http://{}/told/", server.addr)).await;
    browser.until("document.querySelectorAll('#rows tr').length === 1").await;
    for place in ["#node", "#version", ".trouble strong", ".pod", "td.container", "span.phase"] {
        let script = format!("return document.querySelector('{place}').textContent");
        let text = browser.run(&script).await;
        assert!(text.as_str().unwrap().contains(evil), "{place}: {text}");
    }
    assert_eq!(browser.run("return document.querySelectorAll('img, td script').length").await, 0);
    assert_eq!(browser.run("return typeof window.hacked").await, "undefined");
    assert_eq!(browser.run(&format!("return {SCROLLS_SIDEWAYS}")).await, json!(false));

    // Even code that slipped in would not run: the policy knows one script.
    browser
        .run(
            "const s = document.createElement('script');
             for (const attempt of [
                 () => { s.textContent = 'window.hacked = 1'; document.body.append(s); },
                 () => { s.append('window.hacked = 1'); document.body.append(s); },
                 () => { document.body.innerHTML = '<img src=x onerror=\"window.hacked = 1\">'; },
             ]) { try { attempt(); } catch {} }",
        )
        .await;
    assert_eq!(browser.run("return typeof window.hacked").await, "undefined");
    server.stop().await;
}
