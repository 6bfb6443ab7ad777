//! Loose objects: one file each, named by id.
//!
//! # Format
//! The 4 bytes `ZNO1`, then the stored form of the object (see [`super::encode`]), to the end of
//! the file. The file of id `abcdef…` is `ab/cdef…`.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::Error;
use super::encode::Encoded;
use crate::objects::file_error::cannot;
use crate::objects::id::ObjectId;
use crate::objects::{durable, folder, regular};

const MAGIC: &[u8; 4] = b"ZNO1";

/// Returns the file of an object in the store's folder `dir`.
pub fn path(dir: &Path, id: &ObjectId) -> PathBuf {
    let name = id.to_string();
    dir.join(&name[..2]).join(&name[2..])
}

/// Reads the stored form; `None` where there is no such file.
pub fn read(dir: &Path, id: &ObjectId) -> Result<Option<Encoded>, Error> {
    let path = path(dir, id);
    let file = match regular::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot::<Error>("open", &path)(error)),
    };
    let corrupt = |what: String| Error::Corrupt { id: *id, path: path.clone(), what };
    let length = file.metadata().map_err(cannot::<Error>("read", &path))?.len();
    let mut magic = [0; MAGIC.len()];
    if length < magic.len() as u64 {
        return Err(corrupt("it does not begin like an object".to_owned()));
    }
    file.read_exact_at(&mut magic, 0).map_err(cannot::<Error>("read", &path))?;
    if magic != *MAGIC {
        return Err(corrupt("it does not begin like an object".to_owned()));
    }
    let start = magic.len() as u64;
    let encoded = Encoded::read_at(&file, start, length - start).map_err(cannot::<Error>("read", &path))?;
    let encoded = encoded.map_err(|error| corrupt(error.to_string()))?;
    if encoded.id == *id { Ok(Some(encoded)) } else { Err(corrupt(format!("it says that it is {}", encoded.id))) }
}

/// Publishes an object, in place of a damaged copy if there is one.
pub fn write(dir: &Path, tmp: &Path, object: &Encoded) -> Result<(), Error> {
    object.check_length()?;
    let path = path(dir, &object.id);
    let mut bytes = MAGIC.to_vec();
    object.write(&mut bytes);
    let written = durable::temp_file(tmp).and_then(|mut file| {
        io::Write::write_all(&mut file, &bytes)?;
        durable::create_dir_all(path.parent().expect("invariant: made by `path`"))?;
        durable::replace_with(file, &path)
    });
    written.map_err(cannot::<Error>("write", &path))
}

/// Makes an object durable that is there: whoever published it may have been killed before its name was.
pub fn secure(dir: &Path, id: &ObjectId) -> Result<(), Error> {
    let path = path(dir, id);
    let fan = path.parent().expect("invariant: made by `path`");
    durable::sync_dir(fan).and_then(|()| durable::sync_dir(dir)).map_err(cannot::<Error>("sync", &path))
}

/// Returns the ids of the loose objects that begin with `prefix`, lower-case hexadecimal digits.
pub fn ids(dir: &Path, prefix: &str) -> Result<Vec<ObjectId>, Error> {
    let mut ids = Vec::new();
    for fan in list(dir)?.into_iter().filter(|fan| fan.len() == 2) {
        let common = fan.len().min(prefix.len());
        if fan[..common] != prefix[..common] {
            continue;
        }
        let names = list(&dir.join(&fan))?;
        ids.extend(names.iter().filter_map(|name| format!("{fan}{name}").parse::<ObjectId>().ok()));
    }
    ids.retain(|id| id.to_string().starts_with(prefix));
    Ok(ids)
}

fn list(dir: &Path) -> Result<Vec<String>, Error> {
    let names = folder::names(dir).map_err(cannot::<Error>("list", dir))?;
    Ok(names.into_iter().filter_map(|name| name.into_string().ok()).filter(|name| name.is_ascii()).collect())
}

/// Returns how many loose objects there are, or `most` if there are more. Costs the names of those.
pub fn count_upto(dir: &Path, most: usize) -> Result<usize, Error> {
    let mut count = 0;
    for fan in list(dir)?.into_iter().filter(|fan| fan.len() == 2) {
        count += list(&dir.join(&fan))?.len();
        if count >= most {
            return Ok(most);
        }
    }
    Ok(count)
}

/// Removes an object that lies in a pack by now, durably or not: a copy that comes back does no harm.
pub fn remove(dir: &Path, id: &ObjectId) -> Result<(), Error> {
    let path = path(dir, id);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cannot("remove", &path)(error)),
        _ => Ok(()),
    }
}
