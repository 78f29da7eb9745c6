//! Reads a running etcd: one request after the other, pinned to one revision, and nothing that writes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::bytes::Bytes;
use thiserror::Error;
use tokio::time::Instant;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::Entry;
use super::kv::kv_client::KvClient;
use super::kv::{KeyValue, RangeRequest, RangeResponse};

/// Where an etcd is, and how it knows us.
#[derive(Clone, Debug)]
pub struct Target {
    /// `https://HOST:PORT`, or `http://` where it takes clients without TLS.
    pub endpoint: String,
    /// The authority of etcd's own certificate, PEM.
    pub authority: Option<PathBuf>,
    /// Our certificate and its key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A connection to one etcd.
#[derive(Debug)]
pub struct Client {
    kv: KvClient<Channel>,
}

/// Why etcd could not be read.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The scan took longer than etcd keeps revisions.
    #[error("etcd compacted the revision {revision} after {objects} objects were read")]
    Compacted {
        /// The revision.
        revision: i64,
        /// How many objects were read.
        objects: u64,
    },
    /// No connection, or it broke.
    #[error("{0}")]
    Connection(String),
    /// A certificate or key cannot be read.
    #[error("{}: {cause}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// etcd answers something that no etcd answers.
    #[error("etcd's answer is wrong: {0}")]
    Nonsense(&'static str),
    /// etcd refuses.
    #[error("etcd answers {:?}: {}", .0.code(), .0.message())]
    Refused(Box<Status>),
    /// The endpoint and the files do not go together.
    #[error("{0}")]
    Usage(&'static str),
}

/// What a scan read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Scan {
    /// The revision of the store at which all of it was read.
    pub revision: u64,
    /// The cluster's id.
    pub cluster_id: u64,
    /// How many objects there are.
    pub objects: u64,
}

/// For the connection with its TLS handshake, and for each answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Largest answer that is taken, in bytes. A page aims at [`PAGE_BYTES`].
const ANSWER_BYTES: usize = 64 << 20;
/// etcd walks over all keys that are left for each page, to count them: small pages cost it more, large ones its memory.
const PAGE_BYTES: u64 = 8 << 20;
/// The first page, when the size of the objects is not known, and the largest: kube-apiserver's own (`etcd3/store.go`, `maxLimit`).
const FIRST_PAGE: i64 = 500;
const LARGEST_PAGE: i64 = 10_000;
/// Largest certificate or key file, in bytes.
const PEM_LIMIT: u64 = 1 << 20;

impl Client {
    /// Connects, with TLS where the endpoint says `https`.
    pub async fn connect(target: &Target) -> Result<Self, ClientError> {
        let is_tls = match target.endpoint.split_once("://") {
            Some(("https", _)) => true,
            Some(("http", _)) => false,
            _ => return Err(ClientError::Usage("an endpoint is https://HOST:PORT or http://HOST:PORT")),
        };
        let endpoint = Endpoint::from_shared(target.endpoint.clone());
        let mut endpoint = endpoint.map_err(|_| ClientError::Usage("the endpoint is no URL"))?;
        match (&target.authority, &target.identity) {
            (Some(authority), identity) if is_tls => {
                let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&*read(authority)?));
                if let Some((certificate, key)) = identity {
                    tls = tls.identity(Identity::from_pem(&*read(certificate)?, &*read(key)?));
                }
                endpoint = endpoint.tls_config(tls).map_err(|error| ClientError::Connection(innermost(&error)))?;
            }
            (None, None) if !is_tls => {}
            (None, _) if is_tls => return Err(ClientError::Usage("https needs the authority of etcd's certificate")),
            _ => return Err(ClientError::Usage("certificates are for https only")),
        }
        let endpoint = endpoint.connect_timeout(CONNECT_LIMIT).timeout(ANSWER_LIMIT);
        // Without these a page of some MiB is a hundred round trips for room in the window.
        let endpoint = endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let channel = tokio::time::timeout(CONNECT_LIMIT, endpoint.connect()).await;
        let channel = channel.map_err(|_| ClientError::Connection("no connection within 5 s".to_owned()))?;
        let channel = channel.map_err(|error| ClientError::Connection(innermost(&error)))?;
        Ok(Self { kv: KvClient::new(channel).max_decoding_message_size(ANSWER_BYTES) })
    }

    /// One key.
    pub async fn get(&mut self, key: &[u8]) -> Result<Option<Entry>, ClientError> {
        let request = RangeRequest { key: Bytes::copy_from_slice(key), ..RangeRequest::default() };
        let answer = self.range(request).await.map_err(|status| refused(status, 0, 0))?;
        answer.kvs.into_iter().next().map(entry).transpose()
    }

    /// Calls `each` for every key that begins with `prefix`, in order, as they were when the scan began. `rate` bounds the objects
    /// per second. `each` is also told how many there are.
    pub async fn scan(
        &mut self,
        prefix: &[u8],
        rate: Option<u32>,
        each: &mut dyn FnMut(Entry, u64),
    ) -> Result<Scan, ClientError> {
        let end = after_prefix(prefix);
        let mut scan = Scan::default();
        let mut page = Paging::new(rate);
        let mut from = Bytes::copy_from_slice(prefix);
        let began = Instant::now();
        let mut read = 0_u64;
        loop {
            let revision = i64::try_from(scan.revision).unwrap_or(0);
            // etcd takes an empty key for an invalid one.
            let key = if from.is_empty() { Bytes::from_static(b"\0") } else { from };
            let request = RangeRequest { key, range_end: end.clone(), limit: page.limit, revision };
            let answer = match self.range(request.clone()).await {
                Err(status) if page.is_too_large(&status) => {
                    from = request.key;
                    continue;
                }
                answer => answer.map_err(|status| refused(status, revision, read))?,
            };
            let header = answer.header.unwrap_or_default();
            if scan.revision == 0 {
                scan.revision = u64::try_from(header.revision).map_err(|_| NO_REVISION)?;
                scan.objects = u64::try_from(answer.count).map_err(|_| ClientError::Nonsense("a negative count"))?;
            }
            scan.cluster_id = header.cluster_id;
            let more = answer.more;
            let (mut bytes, mut count) = (0_u64, 0_u64);
            let mut last = request.key.clone();
            for kv in answer.kvs {
                let entry = entry(kv)?;
                let is_next = if count == 0 { entry.key >= request.key } else { entry.key > last };
                if !is_next || (!end.is_empty() && end != "\0" && entry.key >= end) {
                    return Err(ClientError::Nonsense("keys out of order"));
                }
                bytes = bytes.saturating_add((entry.key.len() + entry.value.len()) as u64);
                count += 1;
                last = entry.key.clone();
                each(entry, scan.objects);
            }
            read += count;
            if !more {
                return Ok(scan);
            }
            if count == 0 {
                return Err(ClientError::Nonsense("more keys after an empty page"));
            }
            // The smallest key after the last one.
            from = [&last[..], b"\0"].concat().into();
            page.adapt(count, bytes);
            if let Some(rate) = rate {
                let due = read.saturating_mul(1000) / u64::from(rate.max(1));
                tokio::time::sleep_until(began + Duration::from_millis(due)).await;
            }
        }
    }

    async fn range(&mut self, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.kv.range(request).await.map(tonic::Response::into_inner)
    }
}

const NO_REVISION: ClientError = ClientError::Nonsense("a negative revision");
const WINDOW: u32 = 16 << 20;

/// How many objects to ask for.
struct Paging {
    limit: i64,
    largest: i64,
}

impl Paging {
    fn new(rate: Option<u32>) -> Self {
        // A page is no more than a quarter of a second's worth.
        let largest = rate.map_or(LARGEST_PAGE, |rate| i64::from(rate / 4).clamp(1, LARGEST_PAGE));
        Self { limit: FIRST_PAGE.min(largest), largest }
    }

    fn adapt(&mut self, count: u64, bytes: u64) {
        let fitting = PAGE_BYTES.saturating_mul(count) / bytes.max(1);
        // Not more than four times at once: the next objects may be larger.
        self.limit =
            i64::try_from(fitting).unwrap_or(i64::MAX).clamp(1, self.largest.min(self.limit.saturating_mul(4)));
    }

    /// Whether the answer was larger than [`ANSWER_BYTES`] and a smaller page can be asked for.
    fn is_too_large(&mut self, status: &Status) -> bool {
        let is_too_large = matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted)
            && status.message().contains("too large")
            && self.limit > 1;
        if is_too_large {
            self.limit = (self.limit / 8).max(1);
            self.largest = self.limit;
        }
        is_too_large
    }
}

fn entry(kv: KeyValue) -> Result<Entry, ClientError> {
    let mod_revision = u64::try_from(kv.mod_revision).map_err(|_| NO_REVISION)?;
    Ok(Entry { key: kv.key, value: kv.value, mod_revision })
}

fn refused(status: Status, revision: i64, objects: u64) -> ClientError {
    // A status with a source was made on this side: no etcd spoke.
    let is_ours = std::error::Error::source(&status).is_some();
    match status.code() {
        Code::OutOfRange if status.message().contains("compacted") => ClientError::Compacted { revision, objects },
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => broken(&status, objects),
        _ if is_ours => broken(&status, objects),
        _ => ClientError::Refused(Box::new(status)),
    }
}

fn broken(status: &Status, objects: u64) -> ClientError {
    ClientError::Connection(format!("after {objects} objects: {}", innermost(status)))
}

/// The first key after all that begin with `prefix`, as etcd takes it: empty keys do not exist, and `\0` means "to the end".
fn after_prefix(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, ClientError> {
    use std::io::Read;

    let file = |cause| ClientError::File { path: path.to_owned(), cause };
    let mut bytes = Zeroizing::new(Vec::new());
    let opened = std::fs::File::open(path).map_err(file)?;
    opened.take(PEM_LIMIT).read_to_end(&mut bytes).map_err(file)?;
    Ok(bytes)
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests;
