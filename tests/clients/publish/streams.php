<?php
// PHP without extensions: file_get_contents with a stream context. The form is "form" or "json".
[, $url, $form, $channel, $type] = $argv;

function post(string $url, array $fields): string
{
    global $form;
    $context = stream_context_create(["http" => [
        "method" => "POST",
        "header" => "Content-Type: " . ($form === "json" ? "application/json" : "application/x-www-form-urlencoded"),
        "content" => $form === "json" ? json_encode($fields) : http_build_query($fields),
    ]]);
    $answer = file_get_contents($url, false, $context);
    if ($answer === false) {
        exit(1);
    }
    return $answer;
}

$token = post("$url/token/", ["userId" => "alex", "channel" => $channel]);
echo $form === "json" ? json_decode($token)->token : $token, "\n";
foreach (array_slice($argv, 5) as $file) {
    $text = file_get_contents($file);
    post("$url/emit/", ["userId" => "*", "channel" => $channel, "event" => $type, "data" => $text]);
}
