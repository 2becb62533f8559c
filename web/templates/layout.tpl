<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <meta name="csrf" content="{{get('csrf', '')}}">
  <title>{{title}} · stirbar</title>
  <link rel="icon" href="/static/icon.svg" type="image/svg+xml">
  <link rel="stylesheet" href="/static/vendor/uPlot.min.css">
  <link rel="stylesheet" href="/static/style.css">
  <link rel="stylesheet" href="/static/parts.css">
  <script src="/static/theme.js"></script>
% if page in ("overview", "unit"):
  <script src="/static/vendor/uPlot.iife.min.js" defer></script>
% end
  <script src="/static/{{page}}.js" type="module"></script>
</head>
<body data-page="{{page}}" data-unit="{{get('unit', '')}}">
  <a class="skip" href="#main">Skip to content</a>
  <header class="top">
    <a class="brand" href="/"><svg viewBox="0 0 24 24" aria-hidden="true"><path d="M7 3h10M8 3v15a4 4 0 0 0 8 0V3"/><path d="M8.2 11h7.6"/><rect x="9.8" y="16.2" width="4.4" height="1.9" rx=".95"/></svg>stirbar</a>
% if page != "login":
    <nav aria-label="Pages">
% for name, address, label in (("overview", "/", "Overview"), ("nodes", "/nodes", "Nodes"), ("experiments", "/experiments", "Experiments"), ("config", "/config", "Configuration"), ("events", "/events", "Events"), ("audit", "/audit", "Audit")):
      <a href="{{address}}"{{!' aria-current="page"' if page == name else ""}}>{{label}}</a>
% end
    </nav>
    <span id="live-state" class="live-state" role="status" data-state="connecting">connecting</span>
% end
    <button id="theme" class="quiet" type="button">Theme: auto</button>
% if page != "login":
    <button id="logout" class="quiet" type="button" title="Signed in as {{get('user', '')}}">Log out</button>
% end
  </header>
% if get("refusal", ""):
  <p id="standing" class="alert" role="alert">{{refusal[0].upper()}}{{refusal[1:]}}: {{remedy}}</p>
% end
  <p id="notice" class="alert" role="alert" hidden></p>
% if page in ("overview", "unit"):
  <ul id="alerts" class="alerts" aria-live="polite" aria-label="Warnings and errors that nobody has acknowledged" hidden></ul>
% end
  <noscript><p class="alert">This page shows live measurements and needs JavaScript. Every figure on it is also in the HTTP API.</p></noscript>
  <main id="main" tabindex="-1">
{{!base}}
  </main>
  <footer>stirbar {{get('version', '')}}</footer>
</body>
</html>
