//! The programs on maps of their own, fed with single packets.

use std::{io, net::IpAddr};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{HashMap, MapData},
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions},
};
use zeropod_ebpf_loader::REDIRECTOR;
use zeropod_redirector_abi::{EGRESS_PROGRAM, INGRESS_PROGRAM, TASK_COMM_OFFSET, comm_name};

use super::{foreign::test_run_complete, packet::Tcp};

pub(crate) const CLIENT: (&str, &str) = ("192.0.2.7", "2001:db8::7");
pub(crate) const POD: (&str, &str) = ("192.0.2.80", "2001:db8::80");
pub(crate) const CLIENT_PORT: u16 = 40000;
pub(crate) const APP: u16 = 80;
pub(crate) const PROXY: u16 = 35001;
/// `TC_ACT_UNSPEC`, which is `TCX_NEXT` too.
pub(crate) const NEXT: u32 = u32::MAX;

/// The programs, loaded by aya, on maps of their own.
pub(crate) struct Redirector(pub(crate) Ebpf);

impl Redirector {
    pub(crate) fn new(probe_binary_name: &str, ignore_localhost: bool) -> Self {
        Self::told(probe_binary_name, ignore_localhost, 0)
    }

    pub(crate) fn told(
        probe_binary_name: &str,
        ignore_localhost: bool,
        task_comm_offset: u32,
    ) -> Self {
        let (name, ignore) = (comm_name(probe_binary_name), u8::from(ignore_localhost));
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        loader.override_global("probe_binary_name", &name, true);
        loader.override_global("tracker_ignore_localhost", &ignore, true);
        loader.override_global(TASK_COMM_OFFSET, &task_comm_offset, true);
        let mut object = loader.load(REDIRECTOR).unwrap();
        for (_, program) in object.programs_mut() {
            let program: &mut SchedClassifier = program.try_into().unwrap();
            program.load().unwrap();
        }
        Self(object)
    }

    /// As a shim sets it up for a container that is scaled down.
    pub(crate) fn scaled_down() -> Self {
        let mut redirector = Self::new("nobody", true);
        redirector.map("socket_tracker").insert(APP, 0_u64, 0).unwrap();
        redirector.map("ingress_redirects").insert(APP, PROXY, 0).unwrap();
        redirector.map("egress_redirects").insert(PROXY, APP, 0).unwrap();
        redirector
    }

    pub(crate) fn map<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        self.0.map_mut(name).unwrap().try_into().unwrap()
    }

    pub(crate) fn activity(&mut self) -> u64 {
        self.map::<u16, u64>("socket_tracker").get(&APP, 0).unwrap()
    }

    /// What a program makes of a packet.
    pub(crate) fn run(&mut self, program: &str, packet: &[u8]) -> Vec<u8> {
        self.try_run(program, packet).unwrap()
    }

    /// What a program makes of a packet; fails for packets that the kernel
    /// does not take for a test, such as those that end in their IP header.
    pub(crate) fn try_run(
        &mut self,
        program: &str,
        packet: &[u8],
    ) -> Result<Vec<u8>, ProgramError> {
        let program: &mut SchedClassifier =
            self.0.program_mut(program).unwrap().try_into().unwrap();
        let mut out = vec![0; packet.len() + 64];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut out);
        let result = program.test_run(options)?;
        assert_eq!(result.return_value, NEXT, "B10");
        out.truncate(usize::try_from(result.data_size_out).unwrap());
        Ok(out)
    }

    /// The same with a checksum in the state COMPLETE. Fails if that no longer
    /// fits the packet afterwards, or if the kernel has no such test.
    pub(crate) fn run_complete(&self, program: &str, packet: &[u8]) -> io::Result<Vec<u8>> {
        let program: &SchedClassifier = self.0.program(program).unwrap().try_into().unwrap();
        test_run_complete(program.fd().unwrap(), packet)
    }

    pub(crate) fn ingress(&mut self, packet: &Tcp) -> Vec<u8> {
        self.run(INGRESS_PROGRAM, &packet.bytes())
    }

    pub(crate) fn egress(&mut self, packet: &Tcp) -> Vec<u8> {
        self.run(EGRESS_PROGRAM, &packet.bytes())
    }
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A SYN of the client, of either version of IP.
pub(crate) fn requests() -> [Tcp; 2] {
    [(CLIENT.0, POD.0), (CLIENT.1, POD.1)]
        .map(|(client, pod)| Tcp::syn((address(client), CLIENT_PORT), (address(pod), APP)))
}
