# syntax=docker/dockerfile:1
#
#   docker build -t statecast .
#
# The binary needs the C library and libgcc, nothing else: TLS is in it. It is linked with glibc, since the allocator of
# musl is slow under several threads, and runs on an image of the same Debian that has no shell and no package manager.
ARG RUST=1.95
ARG DEBIAN=bookworm
# Cargo features besides the default ones, separated by commas.
ARG FEATURES=
ARG RUNTIME=gcr.io/distroless/cc-debian12:nonroot

FROM rust:${RUST}-${DEBIAN} AS build
ARG FEATURES
WORKDIR /src
COPY . .
# The caches are not part of the image, so the binary is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --locked --release --bin statecast --features "$FEATURES" \
    && install -D -m 0755 target/release/statecast /out/statecast \
    && /out/statecast --version

FROM ${RUNTIME}
LABEL org.opencontainers.image.title="statecast" \
      org.opencontainers.image.description="Relay for PostgreSQL outbox tables: publishes full-state events to RabbitMQ" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/statecast /usr/local/bin/statecast
COPY LICENSE NOTICE /usr/share/doc/statecast/
# Loopback would be of no use in a container.
ENV STATECAST_HTTP__LISTEN=0.0.0.0:9465
# Probes and metrics; the console, where it is told to listen beyond the container.
EXPOSE 9465 9466
# By number, so that runAsNonRoot can be checked.
USER 65532:65532
# SIGTERM: stop reading, wait for open confirms up to shutdown.grace, write the cursor.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/statecast"]
CMD ["run"]
