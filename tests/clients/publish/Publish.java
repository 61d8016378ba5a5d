import java.net.HttpURLConnection;
import java.net.URI;
import java.net.URL;
import java.net.URLEncoder;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.stream.Collectors;

/**
 * Java's own HTTP clients. The form is a client and a body: "HttpClient", "HttpClient-1.1" or "HttpURLConnection", and
 * "form" or "json", with a slash between them.
 *
 * HttpClient in its default setting asks in every request to go on in HTTP/2 (Upgrade: h2c).
 */
public class Publish {
    private static final HttpClient DEFAULT = HttpClient.newHttpClient();
    private static final HttpClient HTTP_1_1 = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    public static void main(String[] arguments) throws Exception {
        String url = arguments[0], channel = arguments[2], type = arguments[3];
        String[] form = arguments[1].split("/");
        String token = post(form, url + "/token/", fields("userId", "alex", "channel", channel));
        System.out.println(form[1].equals("json") ? token.replaceAll(".*\"token\": ?\"([^\"]+)\".*", "$1") : token);
        for (String file : Arrays.copyOfRange(arguments, 4, arguments.length)) {
            String text = Files.readString(Path.of(file));
            post(form, url + "/emit/", fields("userId", "*", "channel", channel, "event", type, "data", text));
        }
    }

    private static Map<String, String> fields(String... namesAndValues) {
        Map<String, String> fields = new LinkedHashMap<>();
        for (int i = 0; i < namesAndValues.length; i += 2) fields.put(namesAndValues[i], namesAndValues[i + 1]);
        return fields;
    }

    private static String post(String[] form, String url, Map<String, String> fields) throws Exception {
        boolean isJson = form[1].equals("json");
        String type = isJson ? "application/json" : "application/x-www-form-urlencoded";
        String body = isJson ? json(fields) : urlencoded(fields);
        if (form[0].equals("HttpURLConnection")) return postWithConnection(url, type, body);
        HttpRequest request = HttpRequest.newBuilder(URI.create(url)).header("Content-Type", type)
                .POST(BodyPublishers.ofString(body)).build();
        var response = (form[0].equals("HttpClient") ? DEFAULT : HTTP_1_1).send(request, BodyHandlers.ofString());
        return checked(response.statusCode(), response.body());
    }

    private static String postWithConnection(String url, String type, String body) throws Exception {
        HttpURLConnection connection = (HttpURLConnection) new URL(url).openConnection();
        connection.setRequestMethod("POST");
        connection.setRequestProperty("Content-Type", type);
        connection.setDoOutput(true);
        connection.getOutputStream().write(body.getBytes(StandardCharsets.UTF_8));
        int status = connection.getResponseCode();
        var stream = status < 400 ? connection.getInputStream() : connection.getErrorStream();
        return checked(status, new String(stream.readAllBytes(), StandardCharsets.UTF_8));
    }

    private static String checked(int status, String answer) {
        if (status == 200) return answer;
        System.err.println("status " + status + ": " + answer);
        System.exit(1);
        return null;
    }

    private static String urlencoded(Map<String, String> fields) {
        return fields.entrySet().stream()
                .map(field -> field.getKey() + "=" + URLEncoder.encode(field.getValue(), StandardCharsets.UTF_8))
                .collect(Collectors.joining("&"));
    }

    private static String json(Map<String, String> fields) {
        return fields.entrySet().stream()
                .map(field -> quoted(field.getKey()) + ":" + quoted(field.getValue()))
                .collect(Collectors.joining(",", "{", "}"));
    }

    private static String quoted(String text) {
        return text.chars()
                .mapToObj(c -> c < 32 || c == '"' || c == '\\' ? String.format("\\u%04x", c) : String.valueOf((char) c))
                .collect(Collectors.joining("", "\"", "\""));
    }
}
