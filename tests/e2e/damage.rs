//! Promise 6: damage is found, named, never returned, and harms nobody else.

use std::path::{Path, PathBuf};

use crate::alone::copy_tree;
use crate::common::{Kept, Scene, Setting, assert_same, empty, tidegate, turn};

/// A vault with two disks, each in batches of its own: disk a was written while b had nothing to say, and then b.
struct Two {
    scene: Scene,
    /// Batches of a, by size.
    of_a: Vec<PathBuf>,
    a: Kept,
    b: Kept,
}

pub fn batches(vault: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![vault.join("b")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.sort();
    found
}

fn two_disks() -> Two {
    // No barriers by themselves: an idle disk says nothing.
    let agent = vec![("", "barrier_interval = \"1 h\"".to_owned())];
    let mut scene = Scene::new(Setting { agent, ..Setting::default() }, &["a", "b"], empty(64 << 20));
    scene.wait_copied("a");
    scene.wait_copied("b");
    let vault = scene.dir().join("vault");
    let mut write = |disk: &str| {
        let before = batches(&vault);
        let load = scene.load(disk, 77, 40);
        scene.write_more(&load, 40 << 20);
        scene.keep(disk, "end", Some(&load));
        drop(load);
        scene.wait_vaulted();
        let mut new: Vec<_> = batches(&vault).into_iter().filter(|path| !before.contains(path)).collect();
        new.sort_by_key(|path| std::fs::metadata(path).unwrap().len());
        new
    };
    // The first write of each disk goes with its copy; what counts is what comes after.
    let of_a = write("a");
    write("b");
    scene.stop();
    let b = scene.kept.pop().unwrap();
    let a = scene.kept.pop().unwrap();
    assert!(of_a.len() >= 2, "disk a has too few batches: {of_a:?}");
    Two { scene, of_a, a, b }
}

impl Two {
    /// Damages a copy of the vault, and proves that it is found, named, and harms disk a alone.
    fn prove(&self, what: &str, expected: &[PathBuf], damage: impl FnOnce(&dyn Fn(&Path) -> PathBuf)) {
        let place = self.scene.dir().join(what);
        copy_tree(&self.scene.dir().join("vault"), &place);
        let moved = |original: &Path| place.join(original.strip_prefix(self.scene.dir().join("vault")).unwrap());
        damage(&moved);
        let (vault, identity) = (format!("file://{}", place.display()), self.scene.site.identity());
        let from = ["--vault", &vault, "--identity", identity.to_str().unwrap()];

        let (code, out, err) = tidegate(&[&["verify", "--level", "data"], &from[..]].concat());
        let said = format!("{out}{err}");
        assert_eq!(code, 3, "{what}: verify ended with {code}\n{said}");
        for path in expected {
            let name = path.strip_prefix(self.scene.dir().join("vault")).unwrap().to_str().unwrap();
            assert!(said.contains(name), "{what}: verify does not name {name}\n{said}");
        }

        let target = self.scene.dir().join("target.img");
        let restore = |disk: &str, point: &str| {
            // A restore that failed leaves what it had, to be resumed.
            for left in [&target, &target.with_extension("img.tidegate-resume")] {
                let _ = std::fs::remove_file(left);
            }
            let to = ["--disk", disk, "--point", point, "--to", target.to_str().unwrap()];
            tidegate(&[&["restore"], &from[..], &to].concat())
        };
        let (code, out, err) = restore("a", &self.a.made.id);
        assert_eq!(code, 3, "{what}: the restore of the damaged disk ended with {code}\n{out}{err}");
        let (code, out, err) = restore("b", &self.b.made.id);
        assert_eq!(code, 0, "{what}: the restore of the other disk ended with {code}\n{out}{err}");
        assert_same(&self.b.copy, &target, what);
        std::fs::remove_dir_all(&place).unwrap();
    }
}

#[test]
fn a_flipped_bit_a_truncation_a_swapped_name_and_a_deleted_object_are_found_named_and_harm_one_disk_only() {
    let _turn = turn();
    let two = two_disks();
    let (large, other) = (two.of_a[two.of_a.len() - 1].clone(), two.of_a[two.of_a.len() - 2].clone());
    let only_large = std::slice::from_ref(&large);
    two.prove("flipped", only_large, |moved| {
        let path = moved(&large);
        let mut bytes = std::fs::read(&path).unwrap();
        // In many places of the middle, because what stands at one of them may have been written over since.
        let (quarter, end) = (bytes.len() / 4, bytes.len() / 4 * 3);
        bytes[quarter..end].iter_mut().step_by(16 << 10).for_each(|byte| *byte ^= 0x10);
        std::fs::write(&path, bytes).unwrap();
    });
    two.prove("truncated", only_large, |moved| {
        let path = moved(&large);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    });
    two.prove("swapped", only_large, |moved| {
        let (one, two) = (moved(&large), moved(&other));
        let aside = one.with_extension("aside");
        std::fs::rename(&one, &aside).unwrap();
        std::fs::rename(&two, &one).unwrap();
        std::fs::rename(&aside, &two).unwrap();
    });
    two.prove("deleted", only_large, |moved| std::fs::remove_file(moved(&large)).unwrap());
    // Undamaged, both come back: the harness itself does no harm.
    two.scene.assert_restores(&two.a);
    two.scene.assert_restores(&two.b);
}
