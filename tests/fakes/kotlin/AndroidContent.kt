// android.content.Context, as far as the app code uses it: assets are a folder on disk.
package android.content

import android.content.res.AssetManager
import java.io.File

class Context(val filesDir: File, assetsFolder: File) {
    val assets = AssetManager(assetsFolder)
}
