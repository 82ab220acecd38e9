//! New sandboxes are found also when the kernel does not say so (R4).
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![expect(unsafe_code, reason = "a system call is made to fail")]

mod common;

use std::{fs, thread, time::Duration};

use common::{
    can_run,
    manager::{Manager, config},
    node::Node,
    wait_until,
};
use zeropod_ebpf_loader::{Degraded, Redirectors};

#[test]
fn sandboxes_are_found_after_more_changes_than_the_kernel_remembers_r4() {
    if !can_run(&["ip"]) {
        return;
    }
    let node = Node::new();
    // Only a notice makes it look.
    let rarely = Redirectors::new(config(&node)).rescan_every(Duration::from_hours(1));
    let mut manager = Manager::run(rarely);
    wait_until("the directory is made", || node.maps_dir().exists());
    // Its own change of the directory is behind it.
    let first = node.sandbox();
    first.make_pin_dir();
    manager.wait_until_attached(&first);

    let late = node.sandbox();
    let remembered = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let remembered: usize = remembered.trim().parse().unwrap();
    manager.while_it_is_held_up(|| {
        let other = node.maps_dir().join("other");
        for _ in 0..=remembered / 2 {
            fs::create_dir(&other).unwrap();
            fs::remove_dir(&other).unwrap();
        }
        late.make_pin_dir();
    });
    manager.wait_until_attached(&late);
    manager.stop();
}

#[test]
fn sandboxes_are_found_without_notice_and_the_state_says_so_r4() {
    if !can_run(&["ip"]) {
        return;
    }
    // As if other programs of the user had taken all instances; not by taking
    // them, which would hurt whoever runs on this machine.
    let test = || {
        refuse_inotify();
        let node = Node::new();
        let often = Redirectors::new(config(&node)).rescan_every(Duration::from_millis(200));
        let mut manager = Manager::run(often);
        manager.wait_for("the state", |state| state.degraded.contains(&Degraded::NoNotice));
        let sandbox = node.sandbox();
        sandbox.make_pin_dir();
        manager.wait_until_attached(&sandbox);
        manager.stop();
    };
    thread::scope(|scope| scope.spawn(test).join().unwrap());
}

/// Makes inotify fail in the calling thread and all that it starts, with the
/// error that a full user gets.
fn refuse_inotify() {
    const LOAD_NUMBER: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let statement = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let number = u32::try_from(libc::SYS_inotify_init1).unwrap();
    let mut filter = [
        statement(LOAD_NUMBER, 0, 0, 0),
        statement(JUMP_IF_EQUAL, number, 0, 1),
        statement(RETURN, libc::SECCOMP_RET_ERRNO | libc::EMFILE.cast_unsigned(), 0, 0),
        statement(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let filter =
        libc::sock_fprog { len: filter.len().try_into().unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: the filter outlives the call, which copies it.
    let result =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
