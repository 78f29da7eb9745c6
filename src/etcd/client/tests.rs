use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response};

use super::*;
use crate::etcd::kv::ResponseHeader;
use crate::etcd::kv::kv_server::{Kv, KvServer};

/// An etcd that answers as a test says, and keeps the requests.
#[derive(Clone)]
struct Fake {
    answer: fn(&RangeRequest, usize) -> Result<RangeResponse, Status>,
    requests: Arc<Mutex<Vec<RangeRequest>>>,
}

#[tonic::async_trait]
impl Kv for Fake {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        let number = self.requests.lock().unwrap().len();
        self.requests.lock().unwrap().push(request.clone());
        (self.answer)(&request, number).map(Response::new)
    }
}

/// Scans `/r/` of such an etcd; returns the keys, the outcome and the requests.
async fn scan(
    answer: fn(&RangeRequest, usize) -> Result<RangeResponse, Status>,
) -> (Vec<Bytes>, Result<Scan, ClientError>, Vec<RangeRequest>) {
    let fake = Fake { answer, requests: Arc::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service = KvServer::new(fake.clone());
    let server = tonic::transport::Server::builder().serve_with_incoming(service, TcpListenerStream::new(listener));
    let server = tokio::spawn(server);
    let mut client = Client::connect(&Target { endpoint, authority: None, identity: None }).await.unwrap();
    let mut keys = Vec::new();
    let outcome = client.scan(b"/r/", None, &mut |entry, _| keys.push(entry.key)).await;
    server.abort();
    let requests = fake.requests.lock().unwrap().clone();
    (keys, outcome, requests)
}

#[expect(clippy::unnecessary_wraps, reason = "as etcd answers")]
fn answer(keys: &[&str], more: bool) -> Result<RangeResponse, Status> {
    let kvs = keys.iter().map(|key| KeyValue { key: (*key).to_owned().into(), mod_revision: 3, ..KeyValue::default() });
    let header = Some(ResponseHeader { cluster_id: 5, revision: 7, ..ResponseHeader::default() });
    Ok(RangeResponse { header, kvs: kvs.collect(), more, count: 3 })
}

#[tokio::test]
async fn pages_are_of_one_revision_and_follow_each_other() {
    let (keys, outcome, requests) = scan(|_, number| match number {
        0 => answer(&["/r/a", "/r/b"], true),
        _ => answer(&["/r/b\0"], false),
    })
    .await;
    assert_eq!(keys, ["/r/a", "/r/b", "/r/b\0"]);
    assert_eq!(outcome.unwrap(), Scan { revision: 7, cluster_id: 5, objects: 3 });
    let asked: Vec<_> =
        requests.iter().map(|request| (&request.key[..], &request.range_end[..], request.revision)).collect();
    assert_eq!(asked, [(&b"/r/"[..], &b"/r0"[..], 0), (b"/r/b\0", b"/r0", 7)]);
    assert!(requests.iter().all(|request| request.limit > 0));
}

#[tokio::test]
async fn an_answer_that_no_etcd_gives_ends_the_scan() {
    type Answer = fn(&RangeRequest, usize) -> Result<RangeResponse, Status>;
    let wrong: [Answer; 6] = [
        |_, _| answer(&[], true),
        |_, _| answer(&["/r/b", "/r/a"], false),
        |_, _| answer(&["/r/a", "/r/a"], false),
        |_, _| answer(&["/q"], false),
        |_, _| answer(&["/r0"], false),
        // For ever the same page.
        |_, _| answer(&["/r/a"], true),
    ];
    for answer in wrong {
        let (keys, outcome, _) = scan(answer).await;
        assert!(matches!(outcome, Err(ClientError::Nonsense(_))), "{outcome:?}");
        assert!(keys.len() < 2);
    }
}

#[tokio::test]
async fn a_page_that_is_too_large_is_asked_for_in_parts() {
    let (keys, outcome, requests) = scan(|request, _| {
        if request.limit > 8 {
            return Err(Status::out_of_range("decoded message length too large: found 9 bytes, the limit is: 8 bytes"));
        }
        answer(&["/r/a"], false)
    })
    .await;
    assert_eq!((keys.len(), outcome.unwrap().objects), (1, 3));
    assert_eq!(requests.iter().map(|request| request.limit).collect::<Vec<_>>(), [500, 62, 7]);
}

#[tokio::test]
async fn a_compacted_revision_and_a_refusal_are_told_apart() {
    let (_, outcome, _) = scan(|_, number| match number {
        0 => answer(&["/r/a"], true),
        _ => Err(Status::out_of_range("etcdserver: mvcc: required revision has been compacted")),
    })
    .await;
    assert!(matches!(outcome, Err(ClientError::Compacted { revision: 7, objects: 1 })), "{outcome:?}");
    let (_, outcome, _) = scan(|_, _| Err(Status::permission_denied("etcdserver: permission denied"))).await;
    assert!(matches!(outcome, Err(ClientError::Refused(_))), "{outcome:?}");
    let (_, outcome, _) = scan(|_, _| Err(Status::unavailable("etcdserver: no leader"))).await;
    assert!(matches!(outcome, Err(ClientError::Connection(_))), "{outcome:?}");
}

#[test]
fn the_end_of_a_prefix_is_found() {
    for (prefix, end) in [(&b"/registry/"[..], &b"/registry0"[..]), (b"a\xff", b"b"), (b"\xff", b"\0"), (b"", b"\0")] {
        assert_eq!(&after_prefix(prefix)[..], end);
    }
}

#[test]
fn pages_follow_the_size_of_the_objects() {
    let mut paging = Paging::new(None);
    paging.adapt(500, 500 * 1024);
    assert_eq!(paging.limit, 2000);
    paging.adapt(2000, 2000 * 1024);
    assert_eq!(paging.limit, 8000);
    paging.adapt(8000, 8000 << 20);
    assert_eq!(paging.limit, 8);
    paging.adapt(8, 8 << 30);
    assert_eq!(paging.limit, 1);
    assert!(!paging.is_too_large(&Status::out_of_range("decoded message length too large")));
    let mut slow = Paging::new(Some(100));
    assert_eq!(slow.limit, 25);
    slow.adapt(25, 25);
    assert_eq!(slow.limit, 25);
    assert!(slow.is_too_large(&Status::out_of_range("decoded message length too large")));
    assert_eq!(slow.limit, 3);
}
