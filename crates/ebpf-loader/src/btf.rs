//! Offset of a member in a structure of the running kernel, from its BTF.
//!
//! Only kernels before 6.16 need it, once per process: the whole of it is
//! read, 6 MB or so, and nothing kept.

use std::{fs, io};

/// Where the kernel tells its types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Offset of the name of a task in `struct task_struct`, in bytes.
pub(crate) fn task_comm_offset() -> io::Result<u32> {
    let btf = fs::read(VMLINUX)?;
    member_offset(&btf, b"task_struct", b"comm").ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("no task_struct.comm in {VMLINUX}"))
    })
}

const MAGIC: u16 = 0xeb9f;
/// Size of `struct btf_type`.
const TYPE: usize = 12;
/// Size of `struct btf_member`.
const MEMBER: usize = 12;
const KIND_STRUCT: u32 = 4;

/// Offset in bytes of a member of the first structure of a name. `None` when
/// it is not there or the data is broken.
fn member_offset(btf: &[u8], structure: &[u8], member: &[u8]) -> Option<u32> {
    let btf = Btf::new(btf)?;
    let found = btf
        .types()
        .find(|found| found.kind == KIND_STRUCT && btf.is_named(found.name, structure))?;
    for at in (found.members..).step_by(MEMBER).take(found.count) {
        if btf.is_named(index(btf.types, at)?, member) {
            // With bit fields the upper byte is the width.
            let bits = word(btf.types, at + 8)?;
            let bits = if found.has_flag { bits & 0xff_ffff } else { bits };
            return (bits % 8 == 0).then_some(bits / 8);
        }
    }
    None
}

/// BTF by the layout of Documentation/bpf/btf.rst.
struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

struct Type {
    kind: u32,
    has_flag: bool,
    name: usize,
    /// How many members there are, and where they begin.
    count: usize,
    members: usize,
}

impl<'a> Btf<'a> {
    fn new(btf: &'a [u8]) -> Option<Self> {
        if u16::from_ne_bytes(btf.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = index(btf, 4)?;
        let section = |at| {
            let start = header.checked_add(index(btf, at)?)?;
            btf.get(start..start.checked_add(index(btf, at + 4)?)?)
        };
        Some(Self { types: section(8)?, strings: section(16)? })
    }

    /// All types in the order of their ids, as far as they can be read.
    fn types(&self) -> impl Iterator<Item = Type> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let info = word(self.types, at + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, info as usize & 0xffff);
            let members = at + TYPE;
            let size = match kind {
                // Integers, variables, declaration tags.
                1 | 14 | 17 => 4,
                // Arrays.
                3 => 12,
                // Structures, unions, sections, enumerations of 64 bits.
                KIND_STRUCT | 5 | 15 | 19 => count * MEMBER,
                // Enumerations, prototypes.
                6 | 13 => count * 8,
                // Pointers, forwards, names, qualifiers, functions, floats, tags.
                2 | 7..=12 | 16 | 18 => 0,
                _ => return None,
            };
            let found = Type {
                kind,
                has_flag: info >> 31 == 1,
                name: index(self.types, at)?,
                count,
                members,
            };
            at = members.checked_add(size)?;
            Some(found)
        })
    }

    fn is_named(&self, name: usize, wanted: &[u8]) -> bool {
        name.checked_add(wanted.len()).is_some_and(|end| {
            self.strings.get(name..end) == Some(wanted) && self.strings.get(end) == Some(&0)
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn index(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(word(bytes, at)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct task { int pid; char comm[16]; }`, with some types before it.
    fn example() -> Vec<u8> {
        let strings = b"\0int\0task\0pid\0comm\0";
        let mut types: Vec<u32> = Vec::new();
        types.extend([1, 1 << 24, 4, 32]); // int
        types.extend([0, 2 << 24, 1]); // a pointer
        types.extend([0, 3 << 24, 0, 1, 1, 16]); // an array
        types.extend([5, 4 << 24 | 2, 20]); // the structure
        types.extend([10, 1, 0, 14, 3, 32]); // and its members
        let size = u32::try_from(types.len() * 4).unwrap();
        let mut btf = vec![0x9f, 0xeb, 1, 0];
        let lengths = [24, 0, size, size, u32::try_from(strings.len()).unwrap()];
        btf.extend(lengths.iter().chain(&types).flat_map(|word| word.to_ne_bytes()));
        btf.extend(strings);
        btf
    }

    #[test]
    fn a_member_is_found_by_name() {
        let btf = example();
        assert_eq!(member_offset(&btf, b"task", b"comm"), Some(4));
        assert_eq!(member_offset(&btf, b"task", b"pid"), Some(0));
        for (structure, member) in
            [(&b"task"[..], &b"com"[..]), (b"tas", b"comm"), (b"int", b"pid")]
        {
            assert_eq!(member_offset(&btf, structure, member), None);
        }
    }

    #[test]
    fn broken_data_is_no_member() {
        let btf = example();
        for length in 0..btf.len() - 1 {
            let _none_or_some = member_offset(&btf[..length], b"task", b"comm");
            for byte in [0, 0x7f, 0xff] {
                let mut broken = btf.clone();
                broken[length] = byte;
                let _none_or_some = member_offset(&broken, b"task", b"comm");
            }
        }
        assert_eq!(member_offset(&[], b"task", b"comm"), None);
    }

    #[test]
    fn this_kernel_tells() {
        if !std::path::Path::new(VMLINUX).exists() {
            return;
        }
        let offset = task_comm_offset().unwrap();
        assert!((1..64 * 1024).contains(&offset), "{offset}");
    }
}
