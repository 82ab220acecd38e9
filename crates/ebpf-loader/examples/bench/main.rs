//! What a packet costs in the redirector, beside the object that zeropod 0.12
//! has: `bench <ours> [theirs]`. Needs root and bpftool. Leaves nothing behind.
//!
//! Two tables, since neither tells all. By `BPF_PROG_TEST_RUN` the same packet
//! passes again and again: exact, but it is never one that TCP keeps a clone
//! of, as it does of all that it sends. Real packets over veth are.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a tool for developers")]

#[path = "../../tests/common/mod.rs"]
mod common;
mod redirector;
mod single;
mod traffic;

use std::{env, path::PathBuf, thread};

/// What a row has to come up to.
#[derive(Clone, Copy)]
enum Target {
    /// The cheapest packet: others are measured by it.
    Floor,
    /// No more than 2.2 floors.
    TwoFloors,
    /// No more than theirs.
    Theirs,
    /// No more than theirs and one floor.
    TheirsAndFloor,
}

/// A row of a table.
type Row = (&'static str, Target);

/// Machines are noisy: so much more still meets a target.
const NOISE_PERCENT: u64 = 4;

fn main() {
    let objects: Vec<_> = env::args_os().skip(1).map(PathBuf::from).collect();
    // Each on a thread of its own, whose namespaces are its node.
    let each = |measure: fn(&PathBuf) -> Vec<u64>| {
        let on_own_thread =
            |object| thread::scope(|scope| scope.spawn(|| measure(object)).join().unwrap());
        objects.iter().map(on_own_thread).collect::<Vec<_>>()
    };
    single::introduce();
    print(&single::ROWS, &each(|object| single::measure(object)));
    traffic::introduce();
    print(&traffic::ROWS, &each(|object| traffic::measure(object)));
}

fn print(rows: &[Row], columns: &[Vec<u64>]) {
    let theirs = columns.get(1);
    let heading = if theirs.is_some() { "   ours  theirs  target" } else { "   ours" };
    println!("{:50}{heading}", "");
    let floor = columns[0][0];
    for (row, (name, target)) in rows.iter().enumerate() {
        let ours = columns[0][row];
        let theirs = theirs.map(|theirs| theirs[row]);
        let limit = match (target, theirs) {
            (Target::Floor, _) => None,
            (Target::TwoFloors, _) => Some(floor * 22 / 10),
            (Target::Theirs, theirs) => theirs,
            (Target::TheirsAndFloor, theirs) => theirs.map(|theirs| theirs + floor),
        };
        let verdict = limit.map_or(String::new(), |limit| {
            let met = ours * 100 <= limit * (100 + NOISE_PERCENT);
            format!("  <= {limit:3} {}", if met { "met" } else { "MISSED" })
        });
        let theirs = theirs.map_or(String::new(), |theirs| format!("{theirs:8}"));
        println!("{name:50}{ours:7}{theirs}{verdict}");
    }
}
