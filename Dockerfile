# syntax=docker/dockerfile:1

# The compiler runs on the builder's own platform, whatever platform the image is for.
FROM --platform=$BUILDPLATFORM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
# Go reads the version of the binary from .git.
COPY . .
ARG TARGETOS TARGETARCH
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    GOOS=$TARGETOS GOARCH=$TARGETARCH deploy/build.sh /out/authctl && mkdir -m 700 /out/data

# CA certificates, time zones, a user without rights, and no shell.
FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /out/authctl /usr/local/bin/authctl
COPY --from=build --chown=65532:65532 /out/data /data
ENV APP_DATA_DIR=/data
WORKDIR /data
VOLUME /data
USER 65532:65532
EXPOSE 8080
# It asks the address in the container's settings, and works for serve and relay.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["/usr/local/bin/authctl", "health"]
ENTRYPOINT ["/usr/local/bin/authctl"]
CMD ["serve"]
ARG VERSION=devel REVISION=unknown
LABEL org.opencontainers.image.title="authctl" \
      org.opencontainers.image.description="Accounts, sessions and signed tokens for your own platform" \
      org.opencontainers.image.source="https://github.com/toppira/authctl" \
      org.opencontainers.image.documentation="https://github.com/toppira/authctl/blob/main/docs/operations.md" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
