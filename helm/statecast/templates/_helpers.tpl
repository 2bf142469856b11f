{{- define "statecast.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* 50 characters, so that there is room for what is put behind it. */}}
{{- define "statecast.fullname" -}}
{{- $name := include "statecast.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "statecast.instance" -}}
app.kubernetes.io/name: {{ include "statecast.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* What the Deployment selects: never to be changed. */}}
{{- define "statecast.selector" -}}
{{ include "statecast.instance" . }}
app.kubernetes.io/component: relay
{{- end }}

{{- define "statecast.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "statecast.instance" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "statecast.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "statecast.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "statecast.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The tls section of one server. Takes the name of the server and its values. */}}
{{- define "statecast.tls" -}}
{{- $dir := printf "/run/secrets/statecast/%s" .server }}
{{- $tls := dict "mode" .tls.mode }}
{{- if or .tls.ca.secret .tls.ca.configMap }}
{{- $_ := set $tls "ca_file" (printf "%s-ca.crt" $dir) }}
{{- end }}
{{- if .tls.client.secret }}
{{- $_ := set $tls "cert_file" (printf "%s-client.crt" $dir) }}
{{- $_ := set $tls "key_file" (printf "%s-client.key" $dir) }}
{{- end }}
{{- toYaml $tls }}
{{- end }}

{{/* The configuration file: what the values say, and where the secrets are. */}}
{{- define "statecast.config" -}}
{{- $dir := "/run/secrets/statecast" }}
{{- $config := deepCopy .Values.config }}
{{- $postgres := dict "url_file" (printf "%s/postgres-url" $dir) }}
{{- $_ := set $postgres "tls" (include "statecast.tls" (dict "server" "postgres" "tls" .Values.postgres.tls) | fromYaml) }}
{{- $_ := set $config "postgres" $postgres }}
{{- $rabbitmq := default dict $config.rabbitmq }}
{{- $_ := set $rabbitmq "urls_file" (printf "%s/rabbitmq-urls" $dir) }}
{{- if .Values.rabbitmq.managementUrl.secret }}
{{- $_ := set $rabbitmq "management_url_file" (printf "%s/rabbitmq-management-url" $dir) }}
{{- end }}
{{- $_ := set $rabbitmq "tls" (include "statecast.tls" (dict "server" "rabbitmq" "tls" .Values.rabbitmq.tls) | fromYaml) }}
{{- $_ := set $config "rabbitmq" $rabbitmq }}
{{- toYaml $config }}
{{- end }}

{{/* One file of a projected volume. */}}
{{- define "statecast.projection" -}}
- {{ .kind }}:
    name: {{ .name }}
    items:
      {{- range $key, $path := .items }}
      - key: {{ $key | quote }}
        path: {{ $path }}
      {{- end }}
{{- end }}

{{- define "statecast.tlsProjections" -}}
{{- $ca := dict .tls.ca.key (printf "%s-ca.crt" .server) }}
{{- if .tls.ca.secret }}
{{ include "statecast.projection" (dict "kind" "secret" "name" .tls.ca.secret "items" $ca) }}
{{- else if .tls.ca.configMap }}
{{ include "statecast.projection" (dict "kind" "configMap" "name" .tls.ca.configMap "items" $ca) }}
{{- end }}
{{- with .tls.client }}
{{- if .secret }}
{{ include "statecast.projection" (dict "kind" "secret" "name" .secret "items" (dict .certKey (printf "%s-client.crt" $.server) .keyKey (printf "%s-client.key" $.server))) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Sources of the volume that holds all secrets. Takes the root and the Secret with the URL of PostgreSQL. */}}
{{- define "statecast.secrets" -}}
{{- $values := .root.Values }}
{{- include "statecast.projection" (dict "kind" "secret" "name" .url.secret "items" (dict .url.key "postgres-url")) }}
{{ include "statecast.projection" (dict "kind" "secret" "name" $values.rabbitmq.urls.secret "items" (dict $values.rabbitmq.urls.key "rabbitmq-urls")) }}
{{- with $values.rabbitmq.managementUrl }}
{{- if .secret }}
{{ include "statecast.projection" (dict "kind" "secret" "name" .secret "items" (dict .key "rabbitmq-management-url")) }}
{{- end }}
{{- end }}
{{- include "statecast.tlsProjections" (dict "server" "postgres" "tls" $values.postgres.tls) }}
{{- include "statecast.tlsProjections" (dict "server" "rabbitmq" "tls" $values.rabbitmq.tls) }}
{{- end }}

{{/* What the pods of relay and Job have in common. Takes the root, the ConfigMap's name and the Secret with the URL of PostgreSQL. */}}
{{- define "statecast.volumes" -}}
- name: config
  configMap:
    name: {{ .config }}
- name: secrets
  projected:
    # Readable for the group that fsGroup sets.
    defaultMode: 0440
    sources:
      {{- include "statecast.secrets" . | nindent 6 }}
{{- with .root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "statecast.container" -}}
image: {{ include "statecast.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
env:
  - name: STATECAST_CONFIG
    value: /etc/statecast/statecast.yaml
  # A variable, since the image sets it by one, and variables win.
  - name: STATECAST_HTTP__LISTEN
    value: {{ printf "%s:%d" .Values.http.address (int .Values.http.port) | quote }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumeMounts:
  - name: config
    mountPath: /etc/statecast
    readOnly: true
  - name: secrets
    mountPath: /run/secrets/statecast
    readOnly: true
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
