{{- define "agentsched.name" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- define "agentsched.selector" -}}
app.kubernetes.io/name: agentsched
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "agentsched.labels" -}}
{{ include "agentsched.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- define "agentsched.toml" -}}
{{ .Values.config }}
{{- range .Values.engines }}
[[engines]]
{{- if .id }}
id = {{ .id | quote }}
{{- end }}
url = {{ .url | quote }}
{{- if .kind }}
kind = {{ .kind | quote }}
{{- end }}
{{- if .models }}
models = {{ .models | toJson }}
{{- end }}
{{- if .lmcache }}
lmcache = {{ .lmcache | quote }}
{{- end }}
{{- if .lmcache_instance }}
lmcache_instance = {{ .lmcache_instance | quote }}
{{- end }}
{{- if .kv_events }}
kv_events = {{ .kv_events | quote }}
{{- end }}
{{ end }}
{{- end }}
