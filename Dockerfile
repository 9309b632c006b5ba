# One build, three images: docker build --target outbox-relay|projector|workload .

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked -p outbox-relay -p projector -p workload \
    && cp target/release/outbox-relay target/release/projector target/release/workload /usr/local/bin/

FROM debian:bookworm-slim AS base
# The public authorities, for TLS to servers with certificates from one of them.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
USER 65532:65532
STOPSIGNAL SIGTERM
LABEL org.opencontainers.image.licenses="MIT OR Apache-2.0"

FROM base AS outbox-relay
COPY --from=build /usr/local/bin/outbox-relay /usr/local/bin/
ENV OUTBOX_RELAY__RELAY__HTTP_LISTEN=0.0.0.0:9464
EXPOSE 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["outbox-relay", "healthcheck"]
ENTRYPOINT ["outbox-relay"]
CMD ["run"]

FROM base AS projector
COPY --from=build /usr/local/bin/projector /usr/local/bin/
# Mount your projections at /projections, or copy them into your own image.
ENV PROJECTOR__PROJECTOR__PROJECTIONS_DIR=/projections \
    PROJECTOR__PROJECTOR__HTTP_LISTEN=0.0.0.0:9465
EXPOSE 9465
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["projector", "healthcheck"]
ENTRYPOINT ["projector"]
CMD ["run"]

FROM base AS workload
COPY --from=build /usr/local/bin/workload /usr/local/bin/
ENTRYPOINT ["workload"]
