//! Failures ordered from the API server in process.

use std::time::Duration;

use zeropod_k8s_status_writer::{Config, Degraded};
use zeropod_shim_api::{change::Update, status::Phase};
use zeropod_testkit::kube::{Fault, InProcessApi, On};

use crate::bed::{Bed, Look, StatusHandles, eventually, running, scaled_down};

/// A server, and a writer on it that has a running pod `web`.
async fn bed(case: &str, edit: impl FnOnce(&mut Config)) -> (InProcessApi, Bed, StatusHandles) {
    let api = InProcessApi::start().unwrap();
    let mut bed = Bed::new(&api, case).await;
    let handles = bed.start(edit);
    bed.update(Update::Snapshot(Vec::new()));
    bed.run_app("web", "c1").await;
    bed.event_of("web", "app", "c1", Phase::Running, None);
    bed.becomes("web", running()).await;
    (api, bed, handles)
}

/// What the writer asked for, as `METHOD last-part-of-path status`.
fn ours(api: &InProcessApi) -> Vec<String> {
    api.writes()
        .into_iter()
        .filter(|request| request.query.contains("fieldManager=zeropod-manager"))
        .map(|request| {
            let path = request.path.rsplit('/').next().unwrap_or_default().to_owned();
            format!("{} {path} {}", request.method, request.status)
        })
        .collect()
}

#[tokio::test]
async fn s9_a_scaling_costs_one_patch_one_resize_and_one_event() {
    let (api, bed, _) = bed("s9-a-scaling", |_| ()).await;
    api.forget_requests();
    bed.event("web", "c1", Phase::ScaledDown);
    bed.becomes("web", scaled_down()).await;
    bed.messages("web", 1).await;
    let mut asked = ours(&api);
    // Events go beside the rest.
    asked.sort_by_key(|request| request.starts_with("POST"));
    assert_eq!(asked, ["PATCH web 200", "PATCH resize 200", "POST events 201"]);
    // Neither resynchronisations nor relists cost anything.
    api.forget_requests();
    bed.reading("web", "c1", Phase::ScaledDown);
    api.expire_history();
    eventually(async || {
        let lists = api.requests().into_iter().filter(|request| request.query.contains("nodeName"));
        if lists.count() >= 2 { Ok(()) } else { Err("no new watch".into()) }
    })
    .await;
    assert_eq!(ours(&api), [""; 0]);
}

#[tokio::test]
async fn f_k4_without_the_subresource_the_pod_itself_is_patched() {
    let api = InProcessApi::start().unwrap();
    api.serve_resize(false);
    let bed = Bed::started(&api, "f-k4").await;
    bed.run_app("web", "c1").await;
    bed.event("web", "c1", Phase::ScaledDown);
    bed.becomes("web", scaled_down()).await;
    // Events go beside the rest.
    let mut asked = ours(&api);
    asked.retain(|request| request.starts_with("PATCH"));
    assert_eq!(asked.first().map(String::as_str), Some("PATCH web 200"));
    assert!(!asked.iter().any(|request| request.contains("resize")), "{asked:?}");
    bed.event("web", "c1", Phase::Running);
    bed.becomes("web", running()).await;
}

#[tokio::test]
async fn conflicts_errors_and_broken_connections_are_made_up_for() {
    for (name, fault) in [
        ("s5-conflict", Fault::Status(409)),
        ("status-500", Fault::Status(500)),
        ("status-503", Fault::Status(503)),
        ("status-504", Fault::Status(504)),
        ("closed", Fault::Close),
        ("answer-lost", Fault::ApplyThenClose),
        ("throttled", Fault::TooManyRequests { retry_after_seconds: 1 }),
        ("slow", Fault::Delay(Duration::from_millis(300))),
        ("hung", Fault::Hang),
    ] {
        let timeout = |config: &mut Config| config.request_timeout = Duration::from_secs(1);
        let (api, bed, handles) = bed(name, timeout).await;
        for method in ["PATCH", "POST"] {
            api.inject(On::method(method), 2, fault);
        }
        bed.event("web", "c1", Phase::ScaledDown);
        bed.becomes("web", scaled_down()).await;
        bed.event("web", "c1", Phase::Running);
        bed.becomes("web", running()).await;
        // S7: each Event once, whatever happened to the requests.
        let messages = bed.messages("web", 2).await;
        assert_eq!(
            messages,
            ["Scaled down container app in 120ms", "Restored container app in 120ms"],
            "{name}"
        );
        eventually(async || {
            let state = handles.state.borrow().clone();
            if state.ready() { Ok(()) } else { Err(format!("{name}: {state:?}")) }
        })
        .await;
    }
}

#[tokio::test]
async fn s2_a_server_that_is_away_is_caught_up_with() {
    let (api, bed, handles) = bed("s2-server-away", |_| ()).await;
    api.inject(On::any(), usize::MAX, Fault::Close);
    api.cut_watches();
    bed.event("web", "c1", Phase::ScaledDown);
    bed.event("web", "c1", Phase::Running);
    bed.event("web", "c1", Phase::ScaledDown);
    eventually(async || {
        let state = handles.state.borrow().clone();
        let wanted = [Degraded::ApiUnreachable, Degraded::PodsWatchFailing];
        if wanted.iter().all(|degraded| state.degraded.contains(degraded)) {
            Ok(())
        } else {
            Err(format!("{state:?}"))
        }
    })
    .await;
    api.clear_faults();
    bed.becomes("web", scaled_down()).await;
    bed.messages("web", 3).await;
    eventually(async || {
        let state = handles.state.borrow().clone();
        if state.ready() { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
}

#[tokio::test]
async fn cut_and_expired_watches_go_on() {
    let (api, bed, _) = bed("watches-go-on", |_| ()).await;
    for (number, break_watch) in
        [InProcessApi::cut_watches as fn(&InProcessApi), InProcessApi::expire_history]
            .into_iter()
            .enumerate()
    {
        break_watch(&api);
        // Only the watch can tell of these.
        let name = format!("p{number}");
        bed.event_of(&name, "app", &name, Phase::ScaledDown, None);
        bed.run_app(&name, &name).await;
        bed.becomes(&name, scaled_down()).await;
    }
}

#[tokio::test]
async fn k4_an_invalid_resize_is_asked_for_once() {
    let (api, bed, _) = bed("k4-invalid", |_| ()).await;
    api.inject(On::method("PATCH").path("/resize"), usize::MAX, Fault::Status(422));
    api.forget_requests();
    for _ in 0..3 {
        bed.event("web", "c1", Phase::ScaledDown);
        bed.becomes("web", Look { label: Some("SCALED_DOWN".into()), ..running() }).await;
        bed.event("web", "c1", Phase::Running);
        bed.becomes("web", running()).await;
    }
    let resizes = ours(&api).iter().filter(|request| request.contains("resize")).count();
    assert_eq!(resizes, 1);
}

#[tokio::test]
async fn one_pod_that_hangs_does_not_hold_up_the_others() {
    let (api, bed, _) = bed("one-pod-hangs", |_| ()).await;
    api.inject(On::any().path("/pods/web"), usize::MAX, Fault::Hang);
    bed.event("web", "c1", Phase::ScaledDown);
    for number in 0..20 {
        let name = format!("p{number}");
        bed.run_app(&name, &name).await;
        bed.event(&name, &name, Phase::ScaledDown);
        bed.becomes(&name, scaled_down()).await;
    }
}

#[tokio::test]
async fn s7_events_that_hang_hold_up_no_pod() {
    // Longer than the test: a slot that is taken stays taken.
    let forever = |config: &mut Config| config.request_timeout = Duration::from_hours(1);
    let (api, bed, _) = bed("s7-events-hang", forever).await;
    api.inject(On::method("POST").path("/events"), usize::MAX, Fault::Hang);
    for number in 0..20 {
        let name = format!("p{number}");
        bed.run_app(&name, &name).await;
        bed.event(&name, &name, Phase::ScaledDown);
        bed.becomes(&name, scaled_down()).await;
    }
}
