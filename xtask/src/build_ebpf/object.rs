//! Takes apart a BPF object.

use std::{collections::BTreeMap, error::Error, fmt};

use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionKind,
    build::elf::{Builder, SectionData},
    elf,
};

/// The object without what only a debugger reads. Line and function
/// information of the verifier's log goes too: it is half of the object, and
/// the verifier accepts programs without it.
pub(super) fn stripped(elf: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut builder = Builder::read(elf)?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        let name = name.strip_prefix(".rel").unwrap_or(&name);
        section.delete = name.starts_with(".debug") || name.starts_with(".BTF.ext");
    }
    // LLVM keeps the names of sections and of symbols in one section; this
    // writer wants them apart.
    let names = builder.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = elf::SHT_STRTAB;
    names.data = SectionData::SectionString;
    builder.delete_orphans();
    builder.delete_orphan_relocations();
    builder.delete_orphan_symbols();
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

/// How what `built` makes the kernel do differs from `committed`; empty if it
/// does not.
pub(super) fn differences(committed: &[u8], built: &[u8]) -> Result<Vec<String>, Box<dyn Error>> {
    let (committed, built) = (facts(committed)?, facts(built)?);
    let mut differences = Vec::new();
    for (what, is) in &built {
        match committed.get(what) {
            Some(was) if was == is => {}
            Some(was) => differences.push(format!("{what}: {was} became {is}")),
            None => differences.push(format!("{what} is new: {is}")),
        }
    }
    for (what, was) in committed.iter().filter(|(what, _)| !built.contains_key(*what)) {
        differences.push(format!("{what} is gone: {was}"));
    }
    Ok(differences)
}

/// What the kernel is told, each part by its name.
fn facts(elf: &[u8]) -> Result<BTreeMap<String, String>, Box<dyn Error>> {
    let mut facts = BTreeMap::new();
    let file = object::File::parse(elf)?;
    for section in file.sections() {
        let name = section.name()?;
        match section.kind() {
            SectionKind::Text => {
                for (at, instruction) in section.data()?.chunks(8).enumerate() {
                    facts
                        .insert(format!("{name} instruction {at:4}"), Hex(instruction).to_string());
                }
                for (at, relocation) in section.relocations() {
                    let RelocationTarget::Symbol(symbol) = relocation.target() else {
                        return Err(format!("{name}: relocation without a symbol at {at}").into());
                    };
                    let symbol = file.symbol_by_index(symbol)?;
                    facts.insert(
                        format!("{name} relocation at instruction {:4}", at / 8),
                        format!("{:?} {}", relocation.flags(), symbol.name()?),
                    );
                }
            }
            _ if name.starts_with(".rodata") || name == "license" => {
                facts.insert(name.to_owned(), Hex(section.data()?).to_string());
            }
            _ => {}
        }
    }
    for symbol in file.symbols().filter(object::ObjectSymbol::is_definition) {
        facts.insert(
            format!("symbol {}", symbol.name()?),
            format!("{} bytes at {} in {:?}", symbol.size(), symbol.address(), symbol.section()),
        );
    }
    for (name, map) in aya_obj::Object::parse(elf)?.maps {
        facts.insert(
            format!("map {name}"),
            format!(
                "kind {}, key {} bytes, value {} bytes, {} entries, flags {:#x}",
                map.map_type(),
                map.key_size(),
                map.value_size(),
                map.max_entries(),
                map.map_flags()
            ),
        );
    }
    Ok(facts)
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMITTED: &[u8] = include_bytes!("../../../crates/ebpf-loader/src/redirector.o");

    /// The committed object with one byte of a section changed.
    fn changed(section: &str, at: usize) -> Vec<u8> {
        let file = object::File::parse(COMMITTED).unwrap();
        let (start, _) = file.section_by_name(section).unwrap().file_range().unwrap();
        let mut elf = COMMITTED.to_vec();
        elf[usize::try_from(start).unwrap() + at] ^= 1;
        elf
    }

    #[test]
    fn the_committed_object_equals_itself() {
        assert_eq!(differences(COMMITTED, COMMITTED).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn one_changed_instruction_is_found() {
        let found = differences(COMMITTED, &changed("classifier", 8 * 5 + 4)).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("classifier instruction    5: "), "{found:?}");
    }

    #[test]
    fn one_changed_byte_of_read_only_data_is_found() {
        let found = differences(COMMITTED, &changed(".rodata", 3)).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(".rodata: "), "{found:?}");
    }

    #[test]
    fn a_changed_relocation_is_found() {
        // The symbol index is the upper half of the second word of an entry.
        let found = differences(COMMITTED, &changed(".relclassifier", 8 + 4)).unwrap();
        assert!(found[0].starts_with("classifier relocation at "), "{found:?}");
    }

    #[test]
    fn a_changed_map_definition_is_found() {
        let mut elf = COMMITTED.to_vec();
        let file = object::File::parse(COMMITTED).unwrap();
        let (start, size) = file.section_by_name(".BTF").unwrap().file_range().unwrap();
        // 512 entries, as the length of a BTF array that these maps share.
        let btf = &elf[usize::try_from(start).unwrap()..][..usize::try_from(size).unwrap()];
        let words = btf.chunks(4).position(|word| word == 512_u32.to_le_bytes());
        elf[usize::try_from(start).unwrap() + words.unwrap() * 4] = 1;
        let found = differences(COMMITTED, &elf).unwrap();
        assert!(found[0].starts_with("map active_connections: "), "{found:?}");
        assert!(found.iter().all(|difference| difference.starts_with("map ")), "{found:?}");
    }

    #[test]
    fn nothing_in_it_tells_where_it_was_built() {
        for object in [COMMITTED, include_bytes!("../../../crates/ebpf-loader/src/connections.o")] {
            let text = String::from_utf8_lossy(object);
            for path in ["/root/", "/home/", "/work/", "/tmp/", ".rustup", ".cargo", "registry"] {
                assert!(!text.contains(path), "{path}");
            }
            let file = object::File::parse(object).unwrap();
            assert!(file.section_by_name(".debug_info").is_none());
        }
    }
}
