//! The traffic redirector of a zeropod sandbox, in eBPF.
