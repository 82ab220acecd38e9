//! Prints what the zeropod containers of this node do, as it happens.
//!
//! Do not run it beside a manager: shims hand each event to one subscriber.

use tokio_util::sync::CancellationToken;
use zeropod_shim_api::change::Update;
use zeropod_shim_event_client::{Config, ShimEvents};

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "it is what the program is for")]
async fn main() {
    let events = ShimEvents::new(Config::default());
    let mut updates = events.subscribe();
    tokio::spawn(async move { events.run(CancellationToken::new()).await });
    while let Some(update) = updates.next().await {
        if let Update::Change(change) = update {
            println!("{} is {}", change.key.container, change.state.phase);
        }
    }
}
