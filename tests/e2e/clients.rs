//! The agent's export under other people's NBD clients, and under noise.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use tidegate::cli::quickstart::load::Numbers;
use tidegate::nbd::Listen;

use crate::common::{Scene, Setting, assert_same, ext4, output, succeed, turn};

fn socket(scene: &Scene) -> String {
    match scene.site.nbd("disk1") {
        Listen::Unix(path) => path.display().to_string(),
        Listen::Tcp(address) => panic!("expected a unix socket, found {address}"),
    }
}

#[test]
fn nbdinfo_nbdcopy_qemu_and_fio_work_with_the_agents_export_and_what_they_wrote_comes_back() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], ext4(128 << 20));
    let socket = socket(&scene);
    let uri = format!("nbd+unix:///disk1?socket={socket}");
    let info: serde_json::Value = serde_json::from_str(&succeed("nbdinfo", &["--json", &uri])).unwrap();
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 128 << 20);
    for can in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"] {
        assert_eq!(export[can], true, "{can} in {export}");
    }
    assert!(succeed("nbdinfo", &["--list", &format!("nbd+unix:///?socket={socket}")]).contains("disk1"));
    assert!(succeed("nbdinfo", &["--map", &uri]).contains("data"));

    let out = scene.dir().join("out.img");
    succeed("nbdcopy", &[&uri, out.to_str().unwrap()]);
    assert_same(scene.image("disk1"), &out, "nbdcopy from the export");
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "raw", out.to_str().unwrap(), &uri]);

    let verify = ["--rw=randrw", "--bs=4k", "--size=32m", "--iodepth=16", "--io_size=24m", "--verify=crc32c"];
    let target = format!("--uri={uri}");
    succeed(
        "fio",
        &[&["--name=mixed", "--ioengine=nbd", &target, "--fsync=64", "--verify_state_save=0"], &verify[..]].concat(),
    );
    succeed(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 90 64M 1M",
            "-c",
            "write -z 70M 2M",
            "-c",
            "discard 80M 1M",
            "-c",
            "flush",
            &uri,
        ],
    );
    succeed("qemu-io", &["-f", "raw", "-c", "read -P 90 64M 1M", "-c", "read -P 0 70M 2M", &uri]);
    // The other way, last: the whole disk as it was before.
    succeed("nbdcopy", &["--flush", out.to_str().unwrap(), &uri]);
    assert_same(&out, scene.image("disk1"), "nbdcopy to the export");
    succeed("qemu-io", &["-f", "raw", "-c", "write -P 17 100M 3M", &uri]);

    scene.wait_copied("disk1");
    scene.keep("disk1", "after-all", None);
    scene.wait_vaulted();
    scene.stop();
    scene.assert_all_restore();
}

#[test]
fn noise_on_the_socket_harms_nobody_else() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], ext4(128 << 20));
    let socket = socket(&scene);
    let load = scene.load("disk1", 9, 20);
    let mut numbers = Numbers::new(11);
    for round in 0..60 {
        let mut noise: Vec<u8> = (0..numbers.below(4000)).map(|_| numbers.next() as u8).collect();
        if round % 2 == 0 {
            // A client that says hello properly and then loses its mind.
            let mut hello = 3_u32.to_be_bytes().to_vec();
            hello.extend(b"IHAVEOPT");
            hello.extend((numbers.below(12) as u32).to_be_bytes());
            hello.extend((numbers.next() as u32).to_be_bytes());
            hello.append(&mut noise);
            noise = hello;
        }
        let mut client = UnixStream::connect(&socket).unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_millis(5))).unwrap();
        // Both fail if the server has hung up already, as it should.
        let _ = client.write_all(&noise);
        let _ = client.read(&mut [0; 512]);
    }
    scene.write_more(&load, 8 << 20);
    assert_eq!(load.done().interruptions, 0, "the workload's own connection was broken");
    drop(load);
    scene.assert_alive();
    assert!(File::open(scene.image("disk1")).is_ok());
    let check = output("nbdinfo", &["--size", &format!("nbd+unix:///disk1?socket={socket}")]);
    assert_eq!(String::from_utf8_lossy(&check.stdout).trim(), (128 << 20).to_string());
}
