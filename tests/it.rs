//! The one integration test binary. A test file is a module here; one that is not listed fails.

mod support;

mod it {
    pub mod account;
    pub mod alive;
    pub mod backups;
    pub mod bad_input;
    pub mod chaos;
    pub mod circles;
    pub mod crash;
    pub mod crashpoints;
    pub mod docs;
    pub mod durability;
    pub mod epochs;
    pub mod forks;
    pub mod git;
    pub mod health;
    pub mod hostile;
    pub mod jobs;
    pub mod layers;
    pub mod lazy;
    pub mod migrate;
    pub mod moments;
    pub mod objects_store;
    pub mod pageserver;
    pub mod plumbing;
    pub mod private;
    pub mod refs;
    pub mod repack;
    pub mod restored;
    pub mod runs;
    pub mod settings;
    pub mod trash;
    pub mod versions;
    pub mod wal_end;
    pub mod wal_oracle;
    pub mod walkthrough;
}

#[test]
fn every_file_is_listed() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("tests/it.rs")).unwrap();
    for entry in std::fs::read_dir(root.join("tests/it")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.trim_end_matches(".rs");
        assert!(text.contains(&format!("pub mod {module};")), "tests/it/{name} is not listed in tests/it.rs");
    }
}
