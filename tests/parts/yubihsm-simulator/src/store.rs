//! The objects in the device, and the file that keeps them.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::device::random;
use crate::scp03::StaticKeys;
use crate::wire::Refusal;

pub const LABEL_LENGTH: usize = 40;

/// Types of objects.
pub mod kind {
    pub const OPAQUE: u8 = 1;
    pub const AUTHENTICATION_KEY: u8 = 2;
    pub const WRAP_KEY: u8 = 4;
    pub const HMAC_KEY: u8 = 5;
    pub const SYMMETRIC_KEY: u8 = 8;
}

/// Where an object came from.
pub const GENERATED: u8 = 1;
pub const IMPORTED: u8 = 2;

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Object {
    /// Unique among objects of one type.
    pub id: u16,
    pub kind: u8,
    pub algorithm: u8,
    /// Counts the objects that had this id and type.
    pub sequence: u8,
    pub origin: u8,
    pub domains: u16,
    /// One bit each, from the lowest.
    pub capabilities: u64,
    pub delegated: u64,
    /// Filled up with zeros.
    pub label: Vec<u8>,
    pub value: Vec<u8>,
}

pub struct Store {
    path: Option<PathBuf>,
    content: Content,
}

#[derive(Deserialize, Serialize)]
struct Content {
    objects: Vec<Object>,
    /// Id, type and sequence of those that are gone.
    deleted: Vec<(u16, u8, u8)>,
}

impl Store {
    /// The objects in this file, or those of a new device.
    pub fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let content = match path.as_deref().map(fs::read) {
            None => Content::factory(),
            Some(Err(error)) if error.kind() == ErrorKind::NotFound => Content::factory(),
            Some(read) => read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other))?,
        };
        Ok(Self { path, content })
    }

    pub fn objects(&self) -> &[Object] {
        &self.content.objects
    }

    pub fn get(&self, id: u16, kind: u8) -> Result<&Object, Refusal> {
        self.objects().iter().find(|object| object.is(id, kind)).ok_or(Refusal::OBJECT_NOT_FOUND)
    }

    /// Keeps the object and returns its id; id 0 takes a free one.
    pub fn add(&mut self, mut object: Object) -> Result<u16, Refusal> {
        while object.id == 0 {
            let id = u16::from_be_bytes(random());
            if self.get(id, object.kind).is_err() {
                object.id = id;
            }
        }
        if self.get(object.id, object.kind).is_ok() {
            return Err(Refusal::OBJECT_EXISTS);
        }
        let last = self.content.deleted.iter().rev().find(|(id, kind, _)| object.is(*id, *kind));
        object.sequence = last.map_or(0, |(_, _, sequence)| sequence.wrapping_add(1));
        let id = object.id;
        self.content.objects.push(object);
        self.save()?;
        Ok(id)
    }

    pub fn delete(&mut self, id: u16, kind: u8) -> Result<(), Refusal> {
        let sequence = self.get(id, kind)?.sequence;
        self.content.objects.retain(|object| !object.is(id, kind));
        self.content.deleted.push((id, kind, sequence));
        self.save()
    }

    /// Atomically, so that a kill leaves the old state or the new one.
    fn save(&self) -> Result<(), Refusal> {
        let Some(path) = &self.path else { return Ok(()) };
        write(path, &self.content).map_err(|error| {
            eprintln!("yubihsm-simulator: {}: {error}", path.display());
            Refusal::STORAGE_FAILED
        })
    }
}

fn write(path: &Path, content: &Content) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(content)?)?;
    fs::rename(new, path)
}

impl Object {
    pub fn is(&self, id: u16, kind: u8) -> bool {
        self.id == id && self.kind == kind
    }
}

impl Content {
    /// A new device has one authentication key, which may do everything.
    fn factory() -> Self {
        let mut label = b"DEFAULT AUTHKEY CHANGE THIS ASAP".to_vec();
        label.resize(LABEL_LENGTH, 0);
        let key = Object {
            id: 1,
            kind: kind::AUTHENTICATION_KEY,
            algorithm: 38,
            sequence: 0,
            origin: IMPORTED,
            domains: 0xffff,
            capabilities: u64::MAX,
            delegated: u64::MAX,
            label,
            value: StaticKeys::bytes_of_password(b"password").to_vec(),
        };
        Self { objects: vec![key], deleted: Vec::new() }
    }
}
