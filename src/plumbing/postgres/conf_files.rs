//! Brings a cluster's configuration together in its data directory: what lies elsewhere, as in Debian's layout, and
//! what is included from elsewhere. Its server here must not read the original's files, nor miss them when they go.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::conf::{self, Include, Line};
use crate::objects::bounded;

/// Where Debian has a folder for each version, and in it one for each cluster.
pub const ETC: &str = "/etc/postgresql";

/// The folder in the data directory for files that were included from elsewhere.
const INCLUDED: &str = "included";

/// How deep files may include each other, as in the server.
const DEPTH: u32 = 10;

/// The configuration of a cluster.
#[derive(Debug, Default)]
pub struct Configuration {
    /// Where it was found, if not in the data directory.
    pub folder: Option<PathBuf>,
    /// Files to put into the data directory, or to replace there: path below it, and content.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// Folders that are included, below the data directory. One in which there is nothing has to be there too.
    included: BTreeSet<PathBuf>,
}

impl Configuration {
    /// Returns the folders in which its files lie, or which it includes, below the data directory.
    pub fn folders(&self) -> BTreeSet<Vec<u8>> {
        let of_files = self.files.iter().flat_map(|(path, _)| path.ancestors().skip(1));
        let all = of_files.chain(self.included.iter().flat_map(|path| path.ancestors()));
        all.map(|folder| folder.as_os_str().as_bytes().to_vec()).filter(|folder| !folder.is_empty()).collect()
    }
}

/// What stands in the data directory of a cluster whose configuration is not to be found.
const NOTHING: &str = "# This cluster came without a postgresql.conf: PostgreSQL's own defaults count.\n";

/// Returns the configuration files to put into the data directory `data_dir` of a cluster of version `major`, which is
/// not there if the cluster comes as a stream. They are in `folder`, if that is known, or where the cluster itself or
/// `etc` says. What the cluster's owner `may_read` counts, and nothing else.
pub fn gather(
    data_dir: Option<&Path>,
    major: u32,
    folder: Option<&Path>,
    etc: &Path,
    may_read: &dyn Fn(&Path) -> bool,
) -> Configuration {
    let inside = data_dir.filter(|dir| folder.is_none() && dir.join("postgresql.conf").is_file());
    if let Some(dir) = inside {
        return Files::take(dir, Some(dir), may_read).into_configuration(None);
    }
    let found = || data_dir.and_then(|dir| folder_of(dir, major, etc));
    let Some(folder) = folder.map(Path::to_owned).or_else(found) else {
        let nothing = ("postgresql.conf".into(), NOTHING.as_bytes().to_vec());
        return Configuration { files: vec![nothing], ..Configuration::default() };
    };
    let mut files = Files::take(&folder, None, may_read);
    let values = conf::read_one(&folder.join("postgresql.conf"));
    for (setting, name) in [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")] {
        let path = values.get(setting).map_or_else(|| folder.join(name), |path| folder.join(path));
        if let Some(text) = conf::text(&path).filter(|_| may_read(&path)) {
            files.taken.push((name.into(), text.into_bytes()));
        }
    }
    files.into_configuration(Some(folder))
}

/// Returns the folder with the `postgresql.conf` of a data directory that has none: the one that its server was last
/// started with, or the one in `etc` that names the data directory.
fn folder_of(data_dir: &Path, major: u32, etc: &Path) -> Option<PathBuf> {
    let options = bounded::read_to_string(&data_dir.join("postmaster.opts"), bounded::OF_CLUSTER).unwrap_or_default();
    let mut words = options.split('"').filter(|word| !word.trim().is_empty());
    let from_word = |word: &str| {
        let named = word.trim_start_matches('-').replace('-', "_");
        let file =
            named.starts_with("config_file=").then(|| Path::new(word.split_once('=').map_or("", |(_, file)| file)));
        let folder = file.and_then(Path::parent).map(Path::to_owned);
        folder.or_else(|| Path::new(word).is_absolute().then(|| word.into()))
    };
    let has_conf = |folder: &PathBuf| folder.join("postgresql.conf").is_file();
    if let Some(folder) = words.find_map(|word| from_word(word).filter(has_conf)) {
        return Some(folder);
    }
    let same = |path: &Path| fs::canonicalize(path).ok() == fs::canonicalize(data_dir).ok();
    let clusters = fs::read_dir(etc.join(major.to_string())).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut folders: Vec<PathBuf> = clusters.filter(has_conf).collect();
    folders.sort_unstable();
    folders.into_iter().find(|folder| {
        let values = conf::read_one(&folder.join("postgresql.conf"));
        values.get("data_directory").is_some_and(|dir| same(Path::new(dir)))
    })
}

/// The files of a configuration that were found so far.
struct Files<'a> {
    /// Where they are now, if that is the data directory.
    data_dir: Option<&'a Path>,
    taken: Vec<(PathBuf, Vec<u8>)>,
    /// The folders that were included, other than those of the data directory as it is.
    folders: BTreeSet<PathBuf>,
    /// Of files from elsewhere.
    count: u32,
    /// Of all that were read.
    read: usize,
    /// Whether the cluster's owner could read a file, as which zenith may not run.
    may_read: &'a dyn Fn(&Path) -> bool,
}

impl<'a> Files<'a> {
    /// Takes `postgresql.conf` in `folder` and what it includes.
    fn take(folder: &Path, data_dir: Option<&'a Path>, may_read: &'a dyn Fn(&Path) -> bool) -> Files<'a> {
        let mut files = Files { data_dir, taken: Vec::new(), folders: BTreeSet::new(), count: 0, read: 0, may_read };
        files.add(&folder.join("postgresql.conf"), PathBuf::from("postgresql.conf"), 0);
        files
    }

    fn into_configuration(self, folder: Option<PathBuf>) -> Configuration {
        Configuration { folder, files: self.taken, included: self.folders }
    }

    /// Takes the file at `path`, as `name` in the data directory, and what it includes.
    fn add(&mut self, path: &Path, name: PathBuf, depth: u32) {
        self.read += 1;
        if depth > DEPTH || self.read > conf::MOST_FILES || !(self.may_read)(path) {
            return;
        }
        let Some(text) = conf::text(path) else { return };
        let folder = name.parent().unwrap_or(Path::new("")).to_owned();
        let (mut lines, mut changed) = (Vec::new(), false);
        for line in text.split_inclusive('\n') {
            let Some(Line::Include(kind, target)) = conf::parse(line) else {
                lines.push(line.to_owned());
                continue;
            };
            let sources = conf::included(path, kind, &target);
            if let Some(inner) = below(&folder.join(&target)) {
                let is_folder = kind == Include::Dir && path.parent().is_some_and(|from| from.join(&target).is_dir());
                if is_folder && self.data_dir.is_none() {
                    self.folders.insert(inner.clone());
                }
                for source in sources {
                    let file = if kind == Include::Dir { source.file_name() } else { None };
                    self.add(&source, file.map_or(inner.clone(), |file| inner.join(file)), depth + 1);
                }
                lines.push(line.to_owned());
                continue;
            }
            changed = true;
            lines.push(format!("# {}\n", line.trim_end()));
            for source in sources.into_iter().filter(|source| source.is_file()) {
                self.count += 1;
                let mut file = OsString::from(format!("{:02}-", self.count));
                file.push(source.file_name().unwrap_or_default());
                let up = "../".repeat(folder.components().count());
                lines.push(format!("include '{up}{INCLUDED}/{}'\n", file.to_string_lossy().replace('\'', "''")));
                self.add(&source, Path::new(INCLUDED).join(file), depth + 1);
            }
        }
        // What is in the data directory already stays as it is, byte for byte.
        let is_there = self.data_dir.is_some_and(|dir| {
            let through_link = folder.ancestors().any(|part| dir.join(part).is_symlink() && part != Path::new(""));
            !through_link && path.starts_with(dir)
        });
        if changed || !is_there {
            self.taken.push((name, lines.concat().into_bytes()));
        }
    }
}

/// Returns a path below a folder by its parts alone, if it does not lead out of that.
fn below(path: &Path) -> Option<PathBuf> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    parts.map(|part| if let Component::Normal(name) = part { Some(name) } else { None }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn names(configuration: &Configuration) -> Vec<&str> {
        let mut names: Vec<&str> = configuration.files.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        names.sort_unstable();
        names
    }

    /// Puts the files into a data directory and reads them there.
    fn values(configuration: &Configuration) -> conf::Values {
        let dir = tempfile::tempdir().unwrap();
        configuration
            .files
            .iter()
            .for_each(|(name, text)| write(&dir.path().join(name), std::str::from_utf8(text).unwrap()));
        conf::read(dir.path())
    }

    #[test]
    fn debians_folder_is_found_by_what_the_cluster_or_etc_says() {
        let root = tempfile::tempdir().unwrap();
        let (data, etc) = (root.path().join("data"), root.path().join("etc"));
        fs::create_dir(&data).unwrap();
        let other = etc.join("15/aaa");
        write(&other.join("postgresql.conf"), "data_directory = '/nowhere'\n");
        let folder = etc.join("15/main");
        let conf = format!(
            "data_directory = '{}'\ninclude_dir 'conf.d'\ninclude_dir = './empty.d/'\nhba_file = '{}'\n",
            data.display(),
            folder.join("pg_hba.conf").display()
        );
        write(&folder.join("postgresql.conf"), &conf);
        write(&folder.join("conf.d/x.conf"), "work_mem = 7MB\n");
        fs::create_dir(folder.join("empty.d")).unwrap();
        write(&folder.join("pg_hba.conf"), "local all all peer\n");
        let found = gather(Some(&data), 15, None, &etc, &|_| true);
        assert_eq!(found.folder.as_deref(), Some(folder.as_path()));
        assert_eq!(names(&found), ["conf.d/x.conf", "pg_hba.conf", "postgresql.conf"]);
        assert_eq!(found.folders(), [b"conf.d".to_vec(), b"empty.d".to_vec()].into());
        assert_eq!(values(&found)["work_mem"], "7MB");
        assert_eq!(names(&gather(Some(&data), 16, None, &etc, &|_| true)), ["postgresql.conf"]);
        let opts = format!(
            "/usr/bin/postgres \"-D\" \"{}\" \"-c\" \"config_file={}/postgresql.conf\"\n",
            data.display(),
            other.display()
        );
        write(&data.join("postmaster.opts"), &opts);
        assert_eq!(gather(Some(&data), 15, None, &etc, &|_| true).folder.as_deref(), Some(other.as_path()));
        assert_eq!(gather(None, 15, Some(&folder), &etc, &|_| true).folder.as_deref(), Some(folder.as_path()));
    }

    #[test]
    fn what_is_included_from_elsewhere_is_brought_in() {
        let root = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (root.path().join("data"), root.path().join("elsewhere"));
        write(&elsewhere.join("a.conf"), "work_mem = 1MB\ninclude 'b.conf'\n");
        write(&elsewhere.join("b.conf"), "work_mem = 2MB\n");
        write(&elsewhere.join("dir/c.conf"), "maintenance_work_mem = 3MB\n");
        let conf = format!(
            "port = 1\ninclude '{0}/a.conf'\ninclude_dir '{0}/dir' # x\ninclude_if_exists '/not/there'\ninclude 'own.conf'\n",
            elsewhere.display()
        );
        write(&data.join("postgresql.conf"), &conf);
        write(&data.join("own.conf"), "include '../elsewhere/dir/c.conf'\nwork_mem = 4MB\n");
        let found = gather(Some(&data), 15, None, Path::new("/nowhere"), &|_| true);
        assert!(names(&found).contains(&"own.conf") && names(&found).contains(&"postgresql.conf"));
        fs::remove_dir_all(&elsewhere).unwrap();
        let values = values(&found);
        assert_eq!((values["work_mem"].as_str(), values["maintenance_work_mem"].as_str()), ("4MB", "3MB"));
    }

    #[test]
    fn what_lies_in_the_data_directory_stays_as_it_is() {
        let data = tempfile::tempdir().unwrap();
        write(&data.path().join("postgresql.conf"), "include 'own.conf'\n");
        write(&data.path().join("own.conf"), "work_mem = 4MB\n");
        assert!(gather(Some(data.path()), 15, None, Path::new("/nowhere"), &|_| true).files.is_empty());
    }
}
