//! What the tests of this crate stand on.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::LazyLock,
};

use zeropod_images::{
    arch::Arch,
    debian,
    image::Image,
    programs::{self, PROGRAMS},
    recipe::Release,
    run::workspace,
    sbom::Origin,
    source::{self, Source},
    tree::{Node, Tree},
};
use zeropod_testkit::{cache, skip};

/// 2023-11-14, and no time at which a test runs.
pub(crate) const EPOCH: u64 = 1_700_000_000;

/// The architecture of this machine, whose programs can be run.
pub(crate) fn here() -> Arch {
    Arch::ALL.into_iter().find(|arch| arch.is_here()).expect("amd64 or arm64")
}

/// Whether this machine has the programs that a test needs and it may use them.
pub(crate) fn can_run(programs: &[&str]) -> bool {
    if skip::without_root() {
        return false;
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&&str| env::split_paths(&path).any(|dir| dir.join(name).is_file());
    match programs.iter().find(|name| !is_there(name)) {
        Some(missing) => {
            skip::skip(&format!("{missing} is not installed"));
            false
        }
        None => true,
    }
}

/// What is handed in for an image.
pub(crate) struct Inputs {
    pub(crate) dir: tempfile::TempDir,
}

impl Inputs {
    /// Debug builds of the programs without their debug information, and
    /// stand-ins for the shim and CRIU.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inputs = Self { dir };
        let binaries = inputs.path("binaries").join(here().name());
        fs::create_dir_all(&binaries).unwrap();
        for name in PROGRAMS {
            run(Command::new("strip").arg(built(name)).arg("-o").arg(binaries.join(name)));
        }
        for dir in ["criu/bin", "criu/lib"] {
            fs::create_dir_all(inputs.path(dir)).unwrap();
        }
        fs::copy("/bin/true", inputs.path("shim")).unwrap();
        fs::copy("/bin/true", inputs.path("criu/bin/criu")).unwrap();
        fs::write(inputs.path("criu/lib/libexample.so.1"), "a library").unwrap();
        inputs
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The images, made as by the program, and able to run although debug
    /// builds are not linked statically.
    pub(crate) fn images(&self) -> [Image; 2] {
        let arch = here();
        let release = Release {
            version: "0.0.1".into(),
            epoch: EPOCH,
            origin: Origin {
                builder: "urn:test".into(),
                revision: "0".repeat(40),
                ..Origin::default()
            },
        };
        let workspace = workspace().unwrap();
        let source = |name| Source { arch: None, place: self.path(name).display().to_string() };
        let mut assets = source::criu(&[source("criu")], arch).unwrap();
        assets.extend(source::shim(&[source("shim")], arch).unwrap());
        let criu = debian::criu(arch, &packages()).unwrap();
        let [manager, installer] = PROGRAMS.map(|name| {
            let dir = self.path("binaries").join(arch.name());
            let program = programs::load(&dir, name, arch).unwrap();
            (program, programs::crates(&workspace, name, arch).unwrap())
        });
        let mut images = [
            release.manager(manager.0, &manager.1, Some(criu)).unwrap(),
            release.installer(installer.0, &installer.1, &assets).unwrap(),
        ];
        for image in &mut images {
            let binary = self.path("binaries").join(arch.name()).join(image.name);
            image.layers.push(("This machine's libraries", libraries(&binary)));
        }
        images
    }
}

/// Debian's packages for this machine, from the cache.
pub(crate) fn packages() -> PathBuf {
    static PACKAGES: LazyLock<PathBuf> = LazyLock::new(|| {
        let download = |dir: &Path| {
            let downloaded = debian::download(here(), &dir.join("packages"));
            downloaded.map(drop).map_err(|error| error.to_string())
        };
        let check = |dir: &Path| {
            let archives = dir.join("packages/var/cache/apt/archives");
            debian::criu(here(), &archives).map(drop).map_err(|error| error.to_string())
        };
        let entry = cache::entry("criu-packages", &format!("sid-{}-1", here()), download, check);
        entry.unwrap().join("packages/var/cache/apt/archives")
    });
    PACKAGES.clone()
}

/// Runs a command that has to succeed, and returns what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{}\n{}", text(&stdout), text(&stderr));
    text(&stdout)
}

/// A program of the workspace, as cargo builds it for tests.
fn built(name: &str) -> PathBuf {
    let own = env::current_exe().unwrap();
    let path = own.ancestors().nth(2).unwrap().join(name);
    if !path.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(workspace().unwrap()).args(["build", "--quiet", "--package", name]);
        run(&mut cargo);
    }
    path
}

/// How a debug build is started in its image, by this machine's loader.
pub(crate) fn start(image: &Image) -> String {
    let names = image.layers.last().unwrap().1.iter();
    let loader = names.map(|(path, _)| path).find(|path| path.contains("/ld-linux")).unwrap();
    format!("/{loader} --library-path /{LIBRARIES} /{}", image.name)
}

/// Not where Debian's C library is, which CRIU brings along.
const LIBRARIES: &str = "libraries";

/// The libraries that a program is started with on this machine.
fn libraries(program: &Path) -> Tree {
    let mut tree = Tree::default();
    for word in run(Command::new("ldd").arg(program)).split_whitespace() {
        if let Some((_, name)) = word.rsplit_once('/').filter(|_| word.starts_with('/')) {
            tree.insert(&format!("{LIBRARIES}/{name}"), Node::program(fs::read(word).unwrap()));
        }
    }
    tree
}
