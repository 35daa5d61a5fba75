# syntax=docker/dockerfile:1

FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
# With .git: the version that the binary shows is the one that Go reads from there.
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -trimpath -buildvcs=auto -o /out/authctl ./cmd/authctl && \
    mkdir -m 700 /out/data

FROM busybox:1.37.0-musl AS busybox

# CA certificates, time zones, a user without rights, and no shell.
FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /out/authctl /usr/local/bin/authctl
COPY --from=build --chown=65532:65532 /out/data /data
# Static, and by this name it is wget and nothing else.
COPY --from=busybox /bin/wget /usr/bin/wget
ENV APP_DATA_DIR=/data
WORKDIR /data
VOLUME /data
USER 65532:65532
EXPOSE 8080
# serve and relay answer here, both on loopback alone.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["/usr/bin/wget", "-q", "-O", "/dev/null", "http://127.0.0.1:9090/readyz"]
ENTRYPOINT ["/usr/local/bin/authctl"]
CMD ["serve"]
