//! Every input of the corpus through its target: what the fuzzer found once is never forgotten.

use super::{TARGETS, run};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// All corpora together: they are small, or the fuzzer minimises them.
const CORPUS_BYTES_MAX: u64 = 1_000_000;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_decoder_bears_every_input_of_its_corpus() {
    for (name, target) in TARGETS {
        let files = files(&corpus().join(name));
        assert!(!files.is_empty(), "{name} has no corpus");
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            let outcome = std::panic::catch_unwind(|| target(&bytes));
            assert!(outcome.is_ok(), "{} breaks a rule of its target: see above", file.display());
        }
    }
}

#[test]
fn every_target_has_a_binary_and_a_corpus_and_nothing_else_has() {
    let known: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(known.len(), TARGETS.len(), "names are unique");
    let name = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    let corpora: BTreeSet<String> = files(&corpus()).into_iter().map(name).collect();
    assert_eq!(corpora, known);
    let binaries = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    assert_eq!(files(&binaries).into_iter().map(name).collect::<BTreeSet<_>>(), known);
}

#[test]
fn the_corpora_stay_small() {
    let all = files(&corpus()).into_iter().flat_map(|folder| files(&folder));
    let bytes: u64 = all.map(|file| std::fs::metadata(file).unwrap().len()).sum();
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes");
}

#[test]
fn every_seed_is_in_the_corpus_or_is_written_to_it() {
    let write = std::env::var_os("TIDEGATE_WRITE_SEEDS").is_some();
    let random = if write { super::seeds::random() } else { Vec::new() };
    for (target, name, bytes) in super::seeds::all().into_iter().chain(random) {
        let path = corpus().join(target).join(name);
        if write {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(path.is_file(), "{} is missing: run this test with TIDEGATE_WRITE_SEEDS=1", path.display());
        run(target, &bytes);
    }
}
