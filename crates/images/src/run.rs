//! From the command line to the images.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Parser;

use crate::{
    Error,
    arch::Arch,
    debian,
    error::{output, write},
    image::Image,
    layout::Layout,
    oci::{Annotations, EPOCH},
    programs::{self, PROGRAMS, Program},
    recipe::Release,
    registry::Repository,
    sbom::{Origin, SPDX},
    source::{self, Source},
    tree::Tree,
};

/// Builds the OCI images of the manager and the installer, without a container
/// engine.
///
/// The result is the same for the same source, packages and shim: every file
/// bears the time in `SOURCE_DATE_EPOCH`, by default that of the last commit.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask images")]
pub struct Args {
    /// Architecture to build for, amd64 or arm64; both by default.
    #[arg(long = "arch", value_name = "ARCH")]
    arch: Vec<Arch>,
    /// The shim for the installer's image: a file, an image in the OCI layout
    /// (directory or archive), an archive by `docker save`, or the reference of
    /// an image, such as the Go implementation's installer. No default: it is
    /// another project's program, and you decide which.
    #[arg(long, value_name = "[ARCH=]PLACE")]
    shim: Vec<Source>,
    /// Build the installer's image without a shim, for nodes that have one in
    /// a directory given by `-criu-image=file:DIR`.
    #[arg(long, conflicts_with = "shim")]
    without_shim: bool,
    /// CRIU for the installer's image: a program that needs no libraries but
    /// the host's, a directory with bin and lib, or an image with these, as
    /// with --shim. No default: live migration needs the one that the Go
    /// implementation patches, the rest works with CRIU from 4.2.1 on.
    #[arg(long, value_name = "[ARCH=]PLACE")]
    criu: Vec<Source>,
    /// Build the installer's image without CRIU, for nodes where
    /// `-criu-image=oci:DIR` or `file:DIR` says where it is.
    #[arg(long, conflicts_with = "criu")]
    without_criu: bool,
    /// Build the manager's image without Debian's CRIU, which serves lazy
    /// pages in live migrations.
    #[arg(long)]
    without_lazy_pages: bool,
    /// Directory for the images; target/images by default.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Tag of the images; the version after a "v" by default.
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Push to this registry and path: REGISTRY/PATH/zeropod-manager:TAG and
    /// the same of the installer. Logins are Docker's; registries on loopback
    /// are talked to without TLS.
    #[arg(long, value_name = "REGISTRY/PATH")]
    push: Option<String>,
    /// Take programs from DIR/ARCH instead of building them.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Take Debian's packages from DIR/ARCH; what is missing is downloaded to
    /// there. A directory beside the images by default.
    #[arg(long, value_name = "DIR")]
    packages: Option<PathBuf>,
    /// Where the source is, a URI, for labels and provenance.
    #[arg(long, value_name = "URI")]
    source: Option<String>,
    /// Who builds, a URI, for the provenance.
    #[arg(long, value_name = "URI", default_value = "urn:zeropod:builder:local")]
    builder: String,
}

/// Makes the images and says what it made.
///
/// # Errors
/// When something is missing or does not work.
pub fn run(args: &Args, workspace: &Path, say: &dyn Fn(&str)) -> Result<(), Error> {
    let out = args.out.clone().unwrap_or_else(|| workspace.join("target/images"));
    let packages = args.packages.clone().unwrap_or_else(|| out.join("packages"));
    let archs = if args.arch.is_empty() { Arch::ALL.to_vec() } else { args.arch.clone() };
    let release = Release {
        version: zeropod_build_info::VERSION.to_owned(),
        epoch: epoch(workspace)?,
        origin: Origin {
            builder: args.builder.clone(),
            source: args.source.clone(),
            revision: revision(workspace),
            inputs: Vec::new(),
        },
    };
    // What is missing is said before minutes are spent on building.
    let assets = archs.iter().map(|&arch| args.assets(arch)).collect::<Result<Vec<_>, _>>()?;

    let mut images = Vec::new();
    for (&arch, assets) in archs.iter().zip(&assets) {
        let [manager, installer] = args.programs(workspace, arch, say)?;
        let criu = if args.without_lazy_pages {
            None
        } else {
            let archives = debian::download(arch, &packages.join(arch.name()))?;
            Some(debian::criu(arch, &archives)?)
        };
        let crates = programs::crates(workspace, manager.name, arch)?;
        images.push(release.manager(manager, &crates, criu)?);
        let crates = programs::crates(workspace, installer.name, arch)?;
        images.push(release.installer(installer, &crates, assets)?);
    }
    let tag = args.tag.clone().unwrap_or_else(|| format!("v{}", release.version));
    for name in PROGRAMS {
        let images: Vec<&Image> = images.iter().filter(|image| image.name == name).collect();
        let layout = assemble(&images, &tag, release.epoch)?;
        save(&layout, &images, name, &out, say)?;
        if let Some(to) = &args.push {
            let reference = format!("{}/{name}:{tag}", to.trim_end_matches('/'));
            Repository::open(&reference)?.push(&layout)?;
            say(&format!("pushed {reference}@{}", layout.index().descriptor().digest));
        }
    }
    Ok(())
}

/// Packs images of one name for different architectures.
///
/// # Errors
/// When one cannot be packed.
pub fn assemble(images: &[&Image], tag: &str, epoch: u64) -> Result<Layout, Error> {
    let packed = images.iter().map(|image| image.pack(epoch)).collect::<Result<Vec<_>, _>>()?;
    let name = images.first().map_or("", |image| image.name);
    let annotations = images.first().map_or_else(Annotations::new, |image| image.labels.clone());
    Layout::new(name, tag, packed, annotations)
}

/// Writes NAME as a layout, and NAME-ARCH as archive and as SBOM.
fn save(
    layout: &Layout,
    images: &[&Image],
    name: &str,
    out: &Path,
    say: &dyn Fn(&str),
) -> Result<(), Error> {
    let dir = out.join(name);
    layout.write(&dir)?;
    say(&format!("{name} {}", layout.index().descriptor().digest));
    say(&format!("  {}", dir.display()));
    for (image, packed) in images.iter().zip(layout.images()) {
        let arch = image.arch;
        let archive = out.join(format!("{name}-{arch}.tar"));
        let content = layout.archive(packed)?;
        write(&archive, &content)?;
        let size: u64 = packed.blobs.iter().map(|blob| blob.content.len() as u64).sum();
        say(&format!("  linux/{arch} {} ({size} bytes)", packed.manifest.digest));
        say(&format!("    {}", archive.display()));
        if let Some((_, document)) = image.predicates.iter().find(|(kind, _)| *kind == SPDX) {
            let document = serde_json::to_vec_pretty(document).map_err(Error::json("the SBOM"))?;
            write(&out.join(format!("{name}-{arch}.spdx.json")), &document)?;
        }
    }
    Ok(())
}

impl Args {
    fn assets(&self, arch: Arch) -> Result<Tree, Error> {
        let mut assets = Tree::default();
        if !self.without_criu {
            assets.extend(source::criu(&self.criu, arch)?);
        }
        if !self.without_shim {
            assets.extend(source::shim(&self.shim, arch)?);
        }
        Ok(assets)
    }

    fn programs(
        &self,
        workspace: &Path,
        arch: Arch,
        say: &dyn Fn(&str),
    ) -> Result<[Program; 2], Error> {
        let dir = if let Some(dir) = &self.binaries {
            dir.join(arch.name())
        } else {
            say(&format!("Building for {arch}; the first time takes minutes"));
            programs::build(workspace, arch)?
        };
        let [manager, installer] = PROGRAMS.map(|name| programs::load(&dir, name, arch));
        let loaded = [manager?, installer?];
        for program in &loaded {
            say(&format!(
                "{} for {arch}: {} bytes, {} gzipped",
                program.name,
                program.content.len(),
                program.gzipped
            ));
            // What is handed in may be a debug build.
            if self.binaries.is_none() {
                program.check_size()?;
            }
        }
        Ok(loaded)
    }
}

/// The time that everything bears.
fn epoch(workspace: &Path) -> Result<u64, Error> {
    let text = match env::var(EPOCH) {
        Ok(text) if !text.is_empty() => text,
        _ => git(workspace, "%ct").unwrap_or_else(|| "0".into()),
    };
    text.parse().map_err(|_| Error::unusable(EPOCH, format!("{text:?} is no number of seconds")))
}

/// What `ZEROPOD_REVISION` says, as for the programs, else the last commit.
fn revision(workspace: &Path) -> String {
    env::var("ZEROPOD_REVISION")
        .ok()
        .filter(|revision| !revision.is_empty())
        .or_else(|| git(workspace, "%H"))
        .unwrap_or_else(|| "unknown".into())
}

/// Something about the last commit; `None` outside of a checkout.
fn git(workspace: &Path, format: &str) -> Option<String> {
    let mut git = Command::new("git");
    git.current_dir(workspace).args(["log", "-1", &format!("--format={format}")]);
    let said = output(&mut git).ok()?;
    Some(String::from_utf8_lossy(&said).trim().to_owned()).filter(|text| !text.is_empty())
}

/// The workspace that this program was built in.
///
/// # Errors
/// When it is not there any more.
pub fn workspace() -> Result<PathBuf, Error> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::canonicalize(&path).map_err(Error::io("find", path))
}
