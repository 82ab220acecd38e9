//! Images, as kubelet pulls them.

use std::io::Write;

use prost::Message;
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::Containerd;
use crate::{Error, chain};

/// The namespace of everything that Kubernetes has in containerd.
const NAMESPACE: &str = "k8s.io";

impl Containerd {
    /// Pulls an image as the node is configured to, and returns the digest of
    /// its index or manifest.
    ///
    /// # Errors
    /// When that does not succeed before the connection's limit.
    pub async fn pull(&self, reference: &str) -> Result<String, Error> {
        const WHAT: &str = "CRIU image";
        let image = ImageSpec { image: reference.to_owned() };
        let request = PullImageRequest { image: Some(image.clone()) };
        let pulled: PullImageResponse = self
            .ask(WHAT, "/runtime.v1.ImageService/PullImage", request)
            .await
            .map_err(|status| self.failed(WHAT, &status))?;
        let request = ImageStatusRequest { image: Some(ImageSpec { image: pulled.image_ref }) };
        let status: ImageStatusResponse = self
            .ask(WHAT, "/runtime.v1.ImageService/ImageStatus", request)
            .await
            .map_err(|status| self.failed(WHAT, &status))?;
        let names = status.image.unwrap_or_default().repo_digests;
        let digest = names.iter().find_map(|name| Some(name.split_once('@')?.1.to_owned()));
        digest.ok_or_else(|| {
            self.failed(WHAT, &Status::not_found(format!("{reference} has no digest")))
        })
    }

    /// Copies a blob of an image that was pulled.
    ///
    /// # Errors
    /// When containerd does not have it, or it has more bytes than `limit`.
    pub async fn read(&self, digest: &str, limit: u64, into: &mut impl Write) -> Result<(), Error> {
        const WHAT: &str = "content of an image";
        let copy = async {
            let mut grpc = Grpc::new(self.channel.clone());
            grpc.ready().await.map_err(|error| Status::unavailable(chain(&error)))?;
            let mut request =
                Request::new(ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 });
            let namespace = tonic::metadata::MetadataValue::from_static(NAMESPACE);
            request.metadata_mut().insert("containerd-namespace", namespace);
            let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Read");
            let codec = ProstCodec::<ReadContentRequest, ReadContentResponse>::default();
            let mut stream = grpc.server_streaming(request, path, codec).await?.into_inner();
            let mut left = limit;
            while let Some(chunk) = stream.message().await? {
                left = u64::try_from(chunk.data.len())
                    .ok()
                    .and_then(|length| left.checked_sub(length))
                    .ok_or_else(|| Status::out_of_range(format!("{digest} is too large")))?;
                into.write_all(&chunk.data).map_err(|error| Status::aborted(error.to_string()))?;
            }
            Ok(())
        };
        let copied = tokio::time::timeout(self.limit, copy).await;
        let copied = copied.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        copied.map_err(|status| match status.code() {
            Code::NotFound => self.failed(WHAT, &Status::not_found(format!(
                "{digest} is gone: with discard_unpacked_layers containerd keeps no layers. Use an image in a file instead (-criu-image=file:..)"
            ))),
            _ => self.failed(WHAT, &status),
        })
    }
}

/// `runtime.v1.ImageSpec`.
#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

/// `runtime.v1.PullImageRequest`.
#[derive(Clone, PartialEq, Message)]
struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

/// `runtime.v1.PullImageResponse`.
#[derive(Clone, PartialEq, Message)]
struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

/// `runtime.v1.ImageStatusRequest`.
#[derive(Clone, PartialEq, Message)]
struct ImageStatusRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

/// `runtime.v1.ImageStatusResponse`.
#[derive(Clone, PartialEq, Message)]
struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
}

/// `runtime.v1.Image`.
#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(string, repeated, tag = "3")]
    repo_digests: Vec<String>,
}

/// `containerd.services.content.v1.ReadContentRequest`.
#[derive(Clone, PartialEq, Message)]
struct ReadContentRequest {
    #[prost(string, tag = "1")]
    digest: String,
    #[prost(int64, tag = "2")]
    offset: i64,
    #[prost(int64, tag = "3")]
    size: i64,
}

/// `containerd.services.content.v1.ReadContentResponse`.
#[derive(Clone, PartialEq, Message)]
struct ReadContentResponse {
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
}
