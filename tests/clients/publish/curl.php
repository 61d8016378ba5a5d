<?php
// PHP's curl extension. The form is "array" (a multipart form), "file" (the text is a file of it), "string" or "json".
[, $url, $form, $channel, $type] = $argv;

function post(string $url, array $fields): string
{
    global $form;
    $curl = curl_init($url);
    curl_setopt($curl, CURLOPT_POST, true);
    curl_setopt($curl, CURLOPT_RETURNTRANSFER, true);
    if ($form === "json") {
        curl_setopt($curl, CURLOPT_HTTPHEADER, ["Content-Type: application/json"]);
        curl_setopt($curl, CURLOPT_POSTFIELDS, json_encode($fields));
    } elseif ($form === "string") {
        curl_setopt($curl, CURLOPT_POSTFIELDS, http_build_query($fields));
    } else {
        if ($form === "file" && isset($fields["data"])) {
            $fields["data"] = new CURLStringFile($fields["data"], "text.txt", "text/plain");
        }
        curl_setopt($curl, CURLOPT_POSTFIELDS, $fields);
    }
    $answer = curl_exec($curl);
    $status = curl_getinfo($curl, CURLINFO_RESPONSE_CODE);
    if ($status !== 200) {
        fwrite(STDERR, "status $status: $answer " . curl_error($curl) . "\n");
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
