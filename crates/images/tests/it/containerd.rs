//! In containerd.

use std::{fs, path::Path, process::Command};

use zeropod_images::{image::Image, run::assemble};

use crate::{
    bed::{self, EPOCH, Inputs, run},
    document,
};

#[test]
fn what_is_made_tells_what_is_in_it_and_runs_in_containerd() {
    if !bed::can_run(&[
        "containerd",
        "ctr",
        "runc",
        "unshare",
        "strip",
        "ldd",
        "debootstrap",
        "dpkg-deb",
    ]) {
        return;
    }
    let inputs = Inputs::new();
    let images = inputs.images();
    for image in &images {
        let layout = assemble(&[image], "test", EPOCH).unwrap();
        document::look_at(image, &layout);
        let archive = layout.archive(&layout.images()[0]).unwrap();
        fs::write(inputs.path(&format!("{}.tar", image.name)), archive).unwrap();
        layout.write(&inputs.path(image.name)).unwrap();
    }
    let [manager, installer] = &images;
    let version = |image: &Image| format!("{}\nversion: {}", image.name, env!("CARGO_PKG_VERSION"));

    let start = |image, argument| format!("{} {argument}", bed::start(image));
    let commands = [
        // As a layout, which is an archive for ctr.
        ("layout", manager, start(manager, "-version")),
        ("archive", manager, "/usr/sbin/criu --version".to_owned()),
        ("archive", installer, start(installer, "-version")),
        ("archive", installer, start(installer, "-help")),
    ];
    let said = in_containerd(&inputs, &commands);
    assert!(said[0].contains(&version(manager)), "{said:?}");
    assert!(said[1].contains("Version: 4."), "{said:?}");
    assert!(said[2].contains(&version(installer)), "{said:?}");
    assert!(said[3].contains("-host-opt-path") && said[3].contains("doctor"), "{said:?}");
}

/// Starts containerd in namespaces of its own, runs each of the commands in a
/// container of its image, and returns what they printed.
fn in_containerd(inputs: &Inputs, commands: &[(&str, &Image, String)]) -> Vec<String> {
    let dir = inputs.path("containerd");
    fs::create_dir(&dir).unwrap();
    let config = format!(
        "version = 2\nroot = '{root}'\nstate = '/run/containerd'\n\
         disabled_plugins = ['io.containerd.grpc.v1.cri']\n\
         [grpc]\naddress = '/run/containerd/containerd.sock'\n",
        root = dir.join("root").display(),
    );
    fs::write(dir.join("config.toml"), config).unwrap();
    let mut script = START.to_owned();
    for (number, (kind, image, command)) in commands.iter().enumerate() {
        let name = image.name;
        let archive = if *kind == "layout" {
            let archive = dir.join(format!("{name}.layout.tar"));
            pack(&inputs.path(name), &archive);
            archive
        } else {
            inputs.path(&format!("{name}.tar"))
        };
        let step = format!(
            "ctr images import --snapshotter native {archive} >&2\n\
             timeout 60 ctr run --rm --snapshotter native --cgroup '' docker.io/library/{name}:test run-{number} {command} >{out} 2>&1\n",
            archive = archive.display(),
            out = dir.join(format!("{number}.txt")).display(),
        );
        script.push_str(&step);
    }
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"])
        .args(["--propagation", "private", "sh", "-ec", &script])
        .env("CONFIG", dir.join("config.toml"))
        .env("LOG", dir.join("log.txt"))
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    run(&mut unshare);
    let said = |number| fs::read_to_string(dir.join(format!("{number}.txt"))).unwrap();
    (0..commands.len()).map(said).collect()
}

const START: &str = r#"
mount -t tmpfs tmpfs /run
containerd --config "$CONFIG" >"$LOG" 2>&1 &
tries=0
until ctr version >/dev/null 2>&1; do
  tries=$((tries + 1))
  [ $tries -lt 600 ] || { cat "$LOG" >&2; exit 1; }
  sleep 0.1
done
"#;

fn pack(layout: &Path, archive: &Path) {
    run(Command::new("tar").arg("-C").arg(layout).arg("-cf").arg(archive).arg("."));
}
